//! Bytes as another process might have written them.

/// A source of bytes that are always the same for one seed.
#[derive(Debug)]
pub struct Bytes(u64);

impl Bytes {
    /// Creates a source.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number that is likely to be an edge: small, huge, one bit, or any.
    pub fn edge(&mut self) -> u64 {
        let any = self.number();
        match self.number() % 5 {
            0 => any % 70,
            1 => u64::MAX - any % 70,
            2 => 1 << (any % 64),
            3 => any % (1 << 22),
            _ => any,
        }
    }

    /// Returns a copy with a few bytes changed, and now and then cut or longer.
    pub fn mangled(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..1 + self.number() % 4 {
            if bytes.is_empty() {
                break;
            }
            let at = self.number() as usize % bytes.len();
            bytes[at] = self.number() as u8;
        }
        match self.number() % 8 {
            0 => bytes.truncate(self.number() as usize % (whole.len() + 1)),
            1 => bytes.extend((0..self.number() % 20).map(|byte| byte as u8)),
            _ => {}
        }
        bytes
    }
}
