//! From a request for a VM to what the creation job needs: sizes resolved by the profile, images found, names made.

use crate::hosts::Hosts;
use crate::images::Images;
use crate::work::{CreateInput, Reservation};
use fleetward_api::controller::{ImageView, VmCreateRequest};
use fleetward_model::name::MAX_LABEL_VALUE;
use fleetward_model::placement::Needs;
use fleetward_model::profile::{Asked, Hardware};
use fleetward_model::vm::{
    CdromSpec, DiskBus, DiskSpec, Firmware, FirmwareKind, VmSpec, VolumeSource,
};
use fleetward_model::{ByteSize, ErrorCode, Failure, GroupName, HostName, ImageName, VmId, VmName};
use time::OffsetDateTime;
use uuid::Uuid;

/// An empty qcow2 file takes less than this.
const EMPTY_VOLUME: ByteSize = ByteSize::mib(1);

/// A VM that could be made, on any host that fits.
pub(crate) struct Wanted {
    pub(crate) name: VmName,
    pub(crate) needs: Needs,
    request: VmCreateRequest,
    hardware: Hardware,
    image: Option<ImageView>,
    iso: Option<ImageView>,
}

/// Resolves and checks a request. Who names neither host nor group means the default group, where the fleet has one.
pub(crate) fn plan(
    images: &Images,
    hosts: &Hosts,
    request: VmCreateRequest,
) -> Result<Wanted, Failure> {
    let name = request.name.clone();
    check_labels(&request)?;
    let image = request
        .image
        .as_ref()
        .map(|image| disk_image(images, image))
        .transpose()?;
    let iso = request
        .iso
        .as_ref()
        .map(|iso| installer(images, iso))
        .transpose()?;
    let image_size = image
        .as_ref()
        .map(|image| ByteSize(image.virtual_size_bytes.next_multiple_of(512)));
    if let (Some(asked), Some(least), Some(image)) =
        (request.disk_bytes, image_size, &request.image)
        && asked < least
    {
        let what = format!("a disk of {asked} is smaller than image {image}, which needs {least}");
        return Err(
            Failure::new(ErrorCode::InvalidArgument, what).fix("leave out --disk, or ask for more")
        );
    }
    let asked = Asked {
        cpus: request.cpus,
        memory: request.memory_bytes,
        disk: request.disk_bytes.or(image_size),
        tpm: request.tpm,
        secure_boot: request.secure_boot,
    };
    let hardware = request.profile.resolve(asked).map_err(|findings| {
        let what = format!("VM {name} cannot be made with profile {}", request.profile);
        Failure::from_findings(what, findings).expect("a refusal has findings")
    })?;
    let default = GroupName::default();
    let has_default = || hosts.all().iter().any(|host| host.group == default);
    let group = match (&request.group, &request.host) {
        (None, None) => has_default().then(|| default.clone()),
        (asked, _) => asked.clone(),
    };
    let written = image
        .as_ref()
        .map_or(EMPTY_VOLUME, |image| ByteSize(image.size_bytes));
    Ok(Wanted {
        needs: Needs {
            host: request.host.clone(),
            group,
            pools: [(request.pool.clone(), written)].into(),
            memory: hardware.memory,
            start: request.start,
            tpm: hardware.tpm,
            secure_boot: hardware.secure_boot,
            ..Needs::default()
        },
        name,
        request,
        hardware,
        image,
        iso,
    })
}

impl Wanted {
    /// The job's input, now that the host is chosen.
    pub(crate) fn on(self, host: HostName, group: GroupName, now: OffsetDateTime) -> CreateInput {
        let id = Uuid::new_v4();
        let devices = self.request.profile.devices();
        let target = match devices.disk_bus {
            DiskBus::Virtio => "vda",
            DiskBus::Sata => "sda",
        };
        let disk = DiskSpec {
            target: target.to_owned(),
            bus: devices.disk_bus,
            pool: self.request.pool,
            volume: format!("{id}-{target}.qcow2"),
            size: self.hardware.disk,
        };
        let source = match &self.image {
            None => VolumeSource::Empty,
            Some(image) => VolumeSource::Image {
                image: image.name.clone(),
                sha256: image.sha256.clone(),
            },
        };
        let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
        let spec = VmSpec {
            id: VmId(id),
            name: self.name.clone(),
            group,
            profile: self.request.profile,
            cpus: self.hardware.cpus,
            memory: self.hardware.memory,
            firmware: Firmware {
                kind: FirmwareKind::Uefi,
                secure_boot: self.hardware.secure_boot,
            },
            tpm: self.hardware.tpm,
            disks: vec![disk],
            cdrom: self.iso.as_ref().map(|iso| CdromSpec {
                image: iso.name.clone(),
                sha256: iso.sha256.clone(),
            }),
            mac: Some(format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")),
            labels: self.request.labels,
            created: now,
        };
        let images = self.image.iter().chain(&self.iso);
        CreateInput {
            vm: spec.id,
            name: self.name,
            reservation: Reservation {
                host: host.clone(),
                memory: if self.request.start {
                    self.hardware.memory
                } else {
                    ByteSize(0)
                },
                space: self.needs.pools,
            },
            host,
            spec,
            sources: vec![source],
            images: images
                .map(|image| (image.sha256.clone(), image.format.clone()))
                .collect(),
            start: self.request.start,
        }
    }
}

fn disk_image(images: &Images, name: &ImageName) -> Result<ImageView, Failure> {
    let image = images.of(name)?;
    if image.format == "iso" {
        let what = format!("image {name} is an installer medium, not a disk");
        return Err(
            Failure::new(ErrorCode::ImageInvalid, what).fix(format!("--iso {name} --disk 64G"))
        );
    }
    Ok(image)
}

fn installer(images: &Images, name: &ImageName) -> Result<ImageView, Failure> {
    let image = images.of(name)?;
    if image.format != "iso" {
        let what = format!("image {name} is a disk, not an installer medium");
        return Err(Failure::new(ErrorCode::ImageInvalid, what).fix(format!("--image {name}")));
    }
    Ok(image)
}

fn check_labels(request: &VmCreateRequest) -> Result<(), Failure> {
    for (key, value) in &request.labels {
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            let what = format!("the value of label {key} cannot be used");
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because(format!(
                    "a value has at most {MAX_LABEL_VALUE} characters and no control characters"
                ))
                .fix(format!("--label {key}=VALUE")));
        }
    }
    Ok(())
}
