//! The program's own executable: where it lies, and which build it is.
#![expect(unsafe_code, reason = "the loader's list of program headers")]

use std::ops::Range;
use std::sync::OnceLock;

/// Bytes that name a build.
pub type BuildId = [u8; 20];

/// The main executable in this process.
#[derive(Debug)]
pub struct Image {
    base: usize,
    code: Vec<Range<usize>>,
    id: BuildId,
}

/// Returns the main executable.
#[must_use]
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(Image::find)
}

impl Image {
    fn find() -> Self {
        let mut image = Self {
            base: 0,
            code: Vec::new(),
            id: [0; 20],
        };
        // SAFETY: the callback matches the type, and the pointer is the image above, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::from_mut(&mut image).cast()) };
        if image.id == [0; 20] {
            image.id = Self::substitute(&image.code, image.base);
        }
        image
    }

    /// Names a build that was linked without a build id, by its size, segments and the first bytes of its code.
    fn substitute(code: &[Range<usize>], base: usize) -> BuildId {
        let len = std::fs::metadata("/proc/self/exe").map_or(0, |meta| meta.len());
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ len;
        let mut mix = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        for range in code {
            for word in [range.start - base, range.end - base] {
                word.to_le_bytes().into_iter().for_each(&mut mix);
            }
            let head = range.len().min(1 << 16);
            // SAFETY: a loaded executable segment is readable memory for the life of the process.
            let bytes = unsafe { std::slice::from_raw_parts(range.start as *const u8, head) };
            bytes.iter().copied().for_each(&mut mix);
        }
        let mut id = [0xff; 20];
        id[..8].copy_from_slice(&hash.to_le_bytes());
        id
    }

    /// Returns the address that offsets of this build count from.
    #[must_use]
    pub fn base(&self) -> usize {
        self.base
    }

    /// Returns what names the build: the linker's build id, or a hash of the code where there is none.
    #[must_use]
    pub fn build_id(&self) -> &BuildId {
        &self.id
    }

    /// Returns `true` if the address lies in the executable's own code (not a library's).
    #[must_use]
    pub fn contains_code(&self, address: usize) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    image: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid entry.
    let info = unsafe { &*info };
    // SAFETY: the pointer is the image of `find`, borrowed by nobody else meanwhile.
    let image = unsafe { &mut *image.cast::<Image>() };
    image.base = info.dlpi_addr as usize;
    if info.dlpi_phdr.is_null() {
        return 1;
    }
    // SAFETY: the entry names an array of `dlpi_phnum` program headers.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let start = image.base + header.p_vaddr as usize;
        let len = header.p_memsz as usize;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
            image.code.push(start..start + len);
        }
        if header.p_type == libc::PT_NOTE {
            // SAFETY: a note segment of the executable is loaded, readable, and `len` bytes long.
            let notes = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
            if let Some(found) = build_id_note(notes) {
                let len = found.len().min(20);
                image.id[..len].copy_from_slice(&found[..len]);
            }
        }
    }
    // The executable comes first; the rest are libraries.
    1
}

fn build_id_note(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word =
        |at: usize, notes: &[u8]| Some(u32::from_ne_bytes(notes.get(at..at + 4)?.try_into().ok()?));
    loop {
        let name = word(0, notes)? as usize;
        let desc = word(4, notes)? as usize;
        let kind = word(8, notes)?;
        let desc_at = 12 + name.next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" {
            return notes.get(desc_at..desc_at + desc);
        }
        notes = notes.get(desc_at + desc.next_multiple_of(4)..)?;
    }
}
