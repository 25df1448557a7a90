//! JSON schemas of types that are text or numbers in JSON.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{
    bounds::{MAX_UID, MAX_VNI},
    endpoint::Vni,
    identity::{ConfigHash, InterfaceName, Uid},
    program::ProgramId,
    quantity::Quantity,
    reason::Reason,
    unix_time::UnixTime,
};

macro_rules! schema {
    ($type:ty, $name:literal, $schema:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema!(Vni, "Vni", json_schema!({"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_VNI}));
schema!(Uid, "Uid", json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_UID}));
// Looser than the type, so that a CEL rule beside the field can say what to write instead.
schema!(InterfaceName, "InterfaceName", json_schema!({"type": "string", "maxLength": 63}));
schema!(ConfigHash, "ConfigHash", json_schema!({"type": "string", "minLength": 32, "maxLength": 32}));
schema!(ProgramId, "ProgramId", json_schema!({"type": "string", "maxLength": 71}));
schema!(UnixTime, "UnixTime", json_schema!({"type": "string", "format": "date-time"}));
// Any reason of any version.
schema!(Reason, "Reason", json_schema!({"type": "string", "maxLength": 64}));
// The rules beside the fields check the text: a pattern here would add a second message that shows nothing but the pattern.
schema!(Quantity, "Quantity", json_schema!({"x-kubernetes-int-or-string": true}));
