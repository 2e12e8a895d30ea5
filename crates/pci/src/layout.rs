//! What a function's configuration space consists of, as data.

use crate::{Bar, ConfigSpace, Identity, MsixCapability};

/// The configuration space of one kind of function, as its specification has it.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// What it says it is.
    pub identity: Identity,
    /// Its BARs.
    pub bars: &'static [Bar],
    /// Offset of the power-management capability, if it has one.
    pub power: Option<u8>,
    /// Offset of the MSI-X capability, and what it says.
    pub msix: (u8, MsixCapability),
    /// Offset of the Express capability.
    pub express: u8,
}

impl ConfigSpace {
    /// The space that `layout` describes, as after power-on.
    ///
    /// # Panics
    /// As the builder's methods: when the layout is none, a mistake of the model's author.
    pub fn of(layout: &Layout) -> Self {
        let mut builder = Self::builder(layout.identity);
        for bar in layout.bars {
            builder = builder.bar(*bar);
        }
        if let Some(at) = layout.power {
            builder = builder.power_management(at.into());
        }
        let (at, msix) = layout.msix;
        builder
            .msix(at.into(), msix)
            .express(layout.express.into())
            .build()
    }
}
