//! Owns: SHA-1 over vectors that hold one word of each stream (FIPS 180-4, 6.1.2), as a macro.
//! Never: instructions. Flow: `avx2` and `avx512` define the operations by name and expand it in a
//! function that has their features; all its indices are constants, so nothing is looked up.

/// FIPS 180-4, 4.2.1.
pub(super) const K: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];

/// Takes `$state`, five vectors, over the sixteen vectors of `$words`. Expects the functions
/// `add`, `rotate`, `splat`, `choose`, `parity`, `majority` and `xor4` of the expanding module.
macro_rules! compress {
    ($state:ident, $words:ident) => {{
        let mut w = $words;
        let [mut a, mut b, mut c, mut d, mut e] = $state;
        compress!(@twenty w, (a b c d e), choose, 0, 0);
        compress!(@twenty w, (a b c d e), parity, 1, 20);
        compress!(@twenty w, (a b c d e), majority, 2, 40);
        compress!(@twenty w, (a b c d e), parity, 3, 60);
        let after = [a, b, c, d, e];
        for (word, after) in $state.iter_mut().zip(after) {
            *word = add(*word, after);
        }
    }};
    (@twenty $w:ident, $v:tt, $f:ident, $k:literal, $t:literal) => {
        let k = splat(K[$k]);
        compress!(@five $w, $v, $f, k, $t);
        compress!(@five $w, $v, $f, k, $t + 5);
        compress!(@five $w, $v, $f, k, $t + 10);
        compress!(@five $w, $v, $f, k, $t + 15);
    };
    // After five rounds each variable has its old part again.
    (
        @five $w:ident, ($a:ident $b:ident $c:ident $d:ident $e:ident),
        $f:ident, $k:ident, $t:expr
    ) => {
        compress!(@round $w, ($a $b $c $d $e), $f, $k, $t);
        compress!(@round $w, ($e $a $b $c $d), $f, $k, $t + 1);
        compress!(@round $w, ($d $e $a $b $c), $f, $k, $t + 2);
        compress!(@round $w, ($c $d $e $a $b), $f, $k, $t + 3);
        compress!(@round $w, ($b $c $d $e $a), $f, $k, $t + 4);
    };
    (
        @round $w:ident, ($a:ident $b:ident $c:ident $d:ident $e:ident),
        $f:ident, $k:ident, $t:expr
    ) => {
        const { assert!($t < 80) };
        if $t >= 16 {
            let sum = xor4($w[($t + 13) % 16], $w[($t + 8) % 16], $w[($t + 2) % 16], $w[$t % 16]);
            $w[$t % 16] = rotate::<1, 31>(sum);
        }
        let sum = add(add($e, add($w[$t % 16], $k)), $f($b, $c, $d));
        $e = add(sum, rotate::<5, 27>($a));
        $b = rotate::<30, 2>($b);
    };
}

pub(super) use compress;
