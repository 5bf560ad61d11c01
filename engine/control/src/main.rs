#![forbid(unsafe_code)]
//! The binary `seedring`. Everything is in the library; see `cli`.

fn main() -> std::process::ExitCode {
    seedring_control::cli::main()
}
