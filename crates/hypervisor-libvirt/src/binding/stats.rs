//! Statistics of many domains in one call.

use super::{Connection, text, uuid_of};
use std::ffi::c_int;
use uuid::Uuid;
use virt::domain::Domain;
use virt::error::Error;

/// Most figures that are taken of one domain.
const MOST: usize = 4096;

/// What libvirt tells of one running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainStats {
    pub(crate) id: Uuid,
    /// libvirt's number of this run of the domain.
    pub(crate) run: u32,
    pub(crate) cpus: u32,
    /// Nanoseconds.
    pub(crate) cpu_time: u64,
    /// Figures by their names, such as `block.0.rd.bytes`.
    pub(crate) figures: Vec<(String, u64)>,
}

/// Of every running domain what `groups` name, of `VIR_DOMAIN_STATS_`.
pub(crate) fn of_all(connection: &Connection, groups: u32) -> Result<Vec<DomainStats>, Error> {
    let mut records: *mut virt_sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    let flags = virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        | virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    // SAFETY: an open connection, and a place for libvirt's array.
    let count = unsafe {
        virt_sys::virConnectGetAllDomainStats(connection.as_ptr(), groups, &mut records, flags)
    };
    taken(records, count)
}

/// The same of these domains, if they run.
pub(crate) fn of(domains: &[Domain], groups: u32) -> Result<Vec<DomainStats>, Error> {
    let mut list: Vec<virt_sys::virDomainPtr> = domains.iter().map(Domain::as_ptr).collect();
    list.push(std::ptr::null_mut());
    let mut records: *mut virt_sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    let flags = virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    // SAFETY: live domains of one connection with a null at their end, and a place for libvirt's array.
    let count =
        unsafe { virt_sys::virDomainListGetStats(list.as_mut_ptr(), groups, &mut records, flags) };
    taken(records, count)
}

/// Reads libvirt's array, and frees it.
fn taken(
    records: *mut virt_sys::virDomainStatsRecordPtr,
    count: c_int,
) -> Result<Vec<DomainStats>, Error> {
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or_default() {
        // SAFETY: libvirt's array has `count` pointers to records, freed only below.
        let record = unsafe { &**records.add(index) };
        // SAFETY: a record of the array has a live domain.
        found.extend(unsafe { stats(record) });
    }
    // SAFETY: libvirt's array, not used after this; null is fine.
    unsafe { virt_sys::virDomainStatsRecordListFree(records) };
    Ok(found)
}

/// None of a domain that has stopped meanwhile.
///
/// SAFETY: a live record of libvirt's.
unsafe fn stats(record: &virt_sys::virDomainStatsRecord) -> Option<DomainStats> {
    // SAFETY: the caller's promise.
    let id = unsafe { uuid_of(record.dom) }?;
    // SAFETY: as above.
    let run = unsafe { virt_sys::virDomainGetID(record.dom) };
    let mut info = virt_sys::virDomainInfo {
        state: 0,
        maxMem: 0,
        memory: 0,
        nrVirtCpu: 0,
        cpuTime: 0,
    };
    // SAFETY: as above, and a place for the answer.
    let told = unsafe { virt_sys::virDomainGetInfo(record.dom, &mut info) };
    if run == u32::MAX || told < 0 {
        return None;
    }
    let length = usize::try_from(record.nparams).unwrap_or_default();
    let mut figures = Vec::new();
    for index in 0..length.min(MOST) {
        // SAFETY: the record has `nparams` parameters, and `index` is below it.
        let parameter = unsafe { &*record.params.add(index) };
        if parameter.type_ != virt_sys::VIR_TYPED_PARAM_ULLONG as c_int {
            continue;
        }
        // SAFETY: of a parameter of this type, `ul` is the member that is set; its name is a NUL-terminated text of the record.
        let (name, value) = unsafe { (text(parameter.field.as_ptr()), parameter.value.ul) };
        figures.push((name, value));
    }
    Some(DomainStats {
        id,
        run,
        cpus: u32::from(info.nrVirtCpu),
        cpu_time: info.cpuTime,
        figures,
    })
}
