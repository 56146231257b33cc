//! The file of QEMU's second flash: an edk2 firmware volume that holds a store of authenticated variables.
//!
//! ```text
//!  0                 header length          + 28                                        end of the store
//!  │ volume header   │ store header │ variable │ variable │ ... │ 0xff 0xff ...         │ work space of edk2 (kept as it is)
//! ```
//! A variable is a header of 60 bytes, its name in UTF-16 with a closing NUL, and its data; the next one begins at a multiple of 4.
//! edk2 never changes one in place: it writes the new one behind the others and marks the old one as deleted. Writing here puts
//! the living ones one after the other, which is what edk2 does itself once a store is full.
//!
//! Source: UEFI PI 1.8 volume 3, section 3.2 (firmware volumes); edk2 `MdeModulePkg/Include/Guid/VariableFormat.h`.

/// Largest file that is looked at, in bytes: larger than any flash that QEMU takes for variables.
pub const MAX_FILE: usize = 16 * 1024 * 1024;

/// `fff12b8d-7696-4c8b-a985-2747075b4f50`, as it lies in memory: a volume of variables.
const VOLUME: Guid = Guid([
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
]);
/// `aaf32c78-947b-439a-a180-2e144ec37792`: a store of authenticated variables.
const AUTHENTICATED: Guid = Guid([
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
]);
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;
const BEGIN: u16 = 0x55aa;
const ADDED: u8 = 0x3f;
/// Being replaced: it counts while there is no newer one.
const IN_TRANSITION: u8 = 0x3e;
const ERASED: u8 = 0xff;

/// An id, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

/// Why a file is not taken for variables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreProblem {
    #[error("it has {0} bytes, more than variables can have")]
    TooLarge(usize),
    #[error("it is no firmware volume with UEFI variables")]
    NoVolume,
    #[error("its firmware volume is damaged: {0}")]
    Volume(&'static str),
    #[error("its store of variables is of another form than authenticated variables of edk2")]
    OtherStore,
    #[error("the variable at byte {0} is damaged")]
    Variable(usize),
    #[error("the variables do not fit: they take {needed} bytes, and there are {room}")]
    Full { needed: usize, room: usize },
}

/// One living variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) attributes: u32,
    pub(crate) count: u64,
    /// `EFI_TIME` of the newest signed write.
    pub(crate) time: [u8; 16],
    pub(crate) key_index: u32,
    pub(crate) vendor: Guid,
    /// UTF-16, little endian, with its closing NUL.
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Variable {
    fn is(&self, vendor: Guid, name: &str) -> bool {
        let units = name.encode_utf16().chain([0]);
        self.vendor == vendor
            && self
                .name
                .iter()
                .copied()
                .eq(units.flat_map(u16::to_le_bytes))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(BEGIN.to_le_bytes());
        out.extend([ADDED, 0]);
        out.extend(self.attributes.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.time);
        out.extend(self.key_index.to_le_bytes());
        // Both were read from 32 bits, or are certificates of some kB.
        out.extend((self.name.len() as u32).to_le_bytes());
        out.extend((self.data.len() as u32).to_le_bytes());
        out.extend(self.vendor.0);
        out.extend(&self.name);
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(4), ERASED);
    }
}

/// A file of variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VariableStore<'a> {
    file: &'a [u8],
    /// Where variables begin and end in the file.
    start: usize,
    end: usize,
    variables: Vec<Variable>,
}

impl<'a> VariableStore<'a> {
    /// Reads a file.
    ///
    /// # Errors
    /// The first thing that is not as edk2 writes it.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, StoreProblem> {
        if file.len() > MAX_FILE {
            return Err(StoreProblem::TooLarge(file.len()));
        }
        let (start, end) = bounds(file)?;
        let variables =
            read_variables(&file[start..end]).map_err(|at| StoreProblem::Variable(start + at))?;
        Ok(Self {
            file,
            start,
            end,
            variables,
        })
    }

    pub(crate) fn get(&self, vendor: Guid, name: &str) -> Option<&Variable> {
        self.variables
            .iter()
            .find(|variable| variable.is(vendor, name))
    }

    pub(crate) fn get_mut(&mut self, vendor: Guid, name: &str) -> Option<&mut Variable> {
        self.variables
            .iter_mut()
            .find(|variable| variable.is(vendor, name))
    }

    /// Puts a variable in the place of the one of its name.
    pub(crate) fn put(&mut self, new: Variable) {
        let same = |old: &&mut Variable| old.vendor == new.vendor && old.name == new.name;
        match self.variables.iter_mut().find(same) {
            Some(old) => *old = new,
            None => self.variables.push(new),
        }
    }

    /// The file with these variables; all else of it is as it was.
    ///
    /// # Errors
    /// There is no room for them.
    pub(crate) fn to_file(&self) -> Result<Vec<u8>, StoreProblem> {
        let written = write_variables(&self.variables);
        let room = self.end - self.start;
        if written.len() > room {
            return Err(StoreProblem::Full {
                needed: written.len(),
                room,
            });
        }
        let mut file = self.file.to_vec();
        file[self.start..self.end].fill(ERASED);
        file[self.start..self.start + written.len()].copy_from_slice(&written);
        Ok(file)
    }
}

/// Where the variables lie in a file.
fn bounds(file: &[u8]) -> Result<(usize, usize), StoreProblem> {
    let volume = Reader(file);
    if volume.guid(16) != Some(VOLUME) || volume.bytes(40, 4) != Some(b"_FVH") {
        return Err(StoreProblem::NoVolume);
    }
    let length = volume
        .u64(32)
        .and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|length| *length <= file.len());
    let length = length.ok_or(StoreProblem::Volume("it is longer than its file"))?;
    let header = usize::from(volume.u16(48).unwrap_or_default());
    let words = file
        .get(..header)
        .filter(|header| header.len() % 2 == 0 && header.len() >= 56);
    let words = words.ok_or(StoreProblem::Volume("its header has no length"))?;
    let sum = words.chunks_exact(2).fold(0_u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
    });
    if sum != 0 {
        return Err(StoreProblem::Volume("the sum of its header is wrong"));
    }
    let store = Reader(file.get(header..length).unwrap_or_default());
    if store.guid(0) != Some(AUTHENTICATED) || store.bytes(20, 2) != Some(&[0x5a, 0xfe]) {
        return Err(StoreProblem::OtherStore);
    }
    let size = store.u32(16).map_or(0, |size| size as usize);
    if size < STORE_HEADER || size > store.0.len() {
        return Err(StoreProblem::Volume("its store is longer than it"));
    }
    Ok((header + STORE_HEADER, header + size))
}

/// The living variables of a store, or of a part of one that was kept.
///
/// # Errors
/// Where one is damaged.
pub(crate) fn read_variables(area: &[u8]) -> Result<Vec<Variable>, usize> {
    let area = Reader(area);
    let (mut living, mut leaving) = (Vec::<Variable>::new(), Vec::new());
    let mut at = 0;
    while area.u16(at) == Some(BEGIN) {
        let (state, variable, next) = read_variable(area, at).ok_or(at)?;
        match state {
            ADDED => living.push(variable),
            IN_TRANSITION => leaving.push(variable),
            // deleted, or never written to its end
            _ => {}
        }
        at = next;
    }
    for variable in leaving {
        let same =
            |other: &Variable| other.vendor == variable.vendor && other.name == variable.name;
        if !living.iter().any(same) {
            living.push(variable);
        }
    }
    Ok(living)
}

/// One variable, with its state and where the next one begins.
fn read_variable(area: Reader<'_>, at: usize) -> Option<(u8, Variable, usize)> {
    let header = Reader(area.bytes(at, VARIABLE_HEADER)?);
    let state = *header.0.get(2)?;
    let (attributes, name, data) = (header.u32(4)?, header.u32(36)?, header.u32(40)?);
    // A header that was not written to its end has no lengths yet: edk2 passes over it alone.
    let unwritten = state == ERASED || [attributes, name, data].contains(&u32::MAX);
    let (name, data) = match unwritten {
        true => (0, 0),
        false => (name as usize, data as usize),
    };
    let name_at = at + VARIABLE_HEADER;
    let data_at = name_at.checked_add(name)?;
    let end = data_at.checked_add(data)?;
    let variable = Variable {
        attributes,
        count: header.u64(8)?,
        time: header.bytes(16, 16)?.try_into().ok()?,
        key_index: header.u32(32)?,
        vendor: header.guid(44)?,
        name: area.bytes(name_at, name)?.to_vec(),
        data: area.bytes(data_at, data)?.to_vec(),
    };
    // The last one may end where the store does, without the bytes that fill it up.
    Some((state, variable, end.checked_next_multiple_of(4)?))
}

/// Variables as they lie in a store.
pub(crate) fn write_variables(variables: &[Variable]) -> Vec<u8> {
    let mut written = Vec::new();
    for variable in variables {
        variable.write(&mut written);
    }
    written
}

/// Reads numbers, and nothing beyond the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(self, at: usize, length: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(length)?)
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.bytes(at, N)?.try_into().ok()
    }

    pub(crate) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(crate) fn guid(self, at: usize) -> Option<Guid> {
        self.array(at).map(Guid)
    }
}
