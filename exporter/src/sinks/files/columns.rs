//! The fields of flows as columns, and rows that are not written yet.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use parquet::{
    basic::{LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type},
    errors::Result,
    file::writer::SerializedRowGroupWriter,
    schema::types::{Type, TypePtr},
};

use crate::flow::{Dns, End, Flow};

/// A field of a flow.
enum Value<'a> {
    /// Milliseconds since 1970.
    Time(u64),
    Byte(Option<u8>),
    Short(Option<u16>),
    Long(Option<u64>),
    /// What is missing in a line is false.
    Flag(bool),
    Text(Option<&'a str>),
    Address(Option<IpAddr>),
    /// None are missing: lines have no empty lists.
    Texts(&'a [String]),
}

/// All fields, in the order of columns: an end, and the name of the field.
fn fields<'a>(flow: &'a Flow, mut set: impl FnMut(&'static str, &'static str, Value<'a>)) {
    use Value::{Byte, Flag, Long, Short, Text, Time};
    // Without `..`: a new field must be a column.
    let Flow {
        start,
        end,
        ether_type,
        protocol,
        bytes,
        packets,
        flags,
        icmp_type,
        icmp_code,
        handshake,
        dns: Dns { id, name, response_code, latency },
        payload,
        missing_by_mirror,
        missing_by_collector,
        retransmitted,
        end_reason,
        opener,
        preexisting,
        degraded,
        reply,
        failure,
        connection,
        sni,
        translated_by,
        zone,
        source,
        destination,
        translated_source,
        translated_destination,
    } = flow;
    let text = |text: &'a Option<String>| Text(text.as_deref());
    for (name, value) in [
        ("TimeFlowStartMs", Time(*start)),
        ("TimeFlowEndMs", Time(*end)),
        ("Etype", Short(Some(*ether_type))),
        ("Proto", Byte(Some(*protocol))),
        ("Bytes", Long(Some(*bytes))),
        ("Packets", Long(Some(*packets))),
        ("Flags", Short(*flags)),
        ("IcmpType", Byte(*icmp_type)),
        ("IcmpCode", Byte(*icmp_code)),
        ("TimeFlowRttNs", Long(*handshake)),
        ("DnsId", Short(*id)),
        ("DnsName", text(name)),
        ("DnsFlagsResponseCode", text(response_code)),
        ("DnsLatencyMs", Long(*latency)),
        ("PayloadBytes", Long(*payload)),
        ("MirrorMissingBytes", Long(*missing_by_mirror)),
        ("CollectorMissingBytes", Long(*missing_by_collector)),
        ("RetransBytes", Long(*retransmitted)),
        ("FlowEndReason", text(end_reason)),
        ("Opener", text(opener)),
        ("Preexisting", Flag(*preexisting)),
        ("Degraded", Flag(*degraded)),
        ("Reply", Flag(*reply)),
        ("Failure", text(failure)),
        ("ConnId", text(connection)),
        ("TlsSni", text(sni)),
        ("XlatBy", text(translated_by)),
        ("ZoneId", Short(*zone)),
    ] {
        set("", name, value);
    }
    for (prefix, end) in [
        ("Src", Some(source)),
        ("Dst", Some(destination)),
        ("XlatSrc", translated_source.as_ref()),
        ("XlatDst", translated_destination.as_ref()),
    ] {
        fields_of_end(end.unwrap_or(&NO_END), !prefix.starts_with("Xlat"), |name, value| set(prefix, name, value));
    }
}

static NO_END: End = End {
    address: None,
    port: None,
    name: None,
    namespace: None,
    kind: None,
    owner: None,
    owner_kind: None,
    node: None,
    node_address: None,
    zone: None,
    taps: Vec::new(),
    network: None,
    country: None,
    dns_name: None,
    service: None,
    service_namespace: None,
    service_port: None,
};

/// `is_addressed`: frames have this address. Ends after translation are pods: they lack what is said of services and networks.
fn fields_of_end<'a>(end: &'a End, is_addressed: bool, mut set: impl FnMut(&'static str, Value<'a>)) {
    use Value::{Address, Short, Text, Texts};
    let End {
        address,
        port,
        name,
        namespace,
        kind,
        owner,
        owner_kind,
        node,
        node_address,
        zone,
        taps,
        network,
        country,
        dns_name,
        service,
        service_namespace,
        service_port,
    } = end;
    let text = |text: &'a Option<String>| Text(text.as_deref());
    for (name, value) in [
        ("Addr", Address(*address)),
        ("Port", Short(*port)),
        ("K8S_Name", text(name)),
        ("K8S_Namespace", text(namespace)),
        ("K8S_Type", text(kind)),
        ("K8S_OwnerName", text(owner)),
        ("K8S_OwnerType", text(owner_kind)),
        ("K8S_HostName", text(node)),
        ("K8S_HostIP", Address(*node_address)),
        ("K8S_Zone", text(zone)),
        ("Taps", Texts(taps)),
    ] {
        set(name, value);
    }
    if is_addressed {
        for (name, value) in [
            ("SubnetLabel", text(network)),
            ("Country", text(country)),
            ("DnsName", text(dns_name)),
            ("ServiceName", text(service)),
            ("ServiceNamespace", text(service_namespace)),
            ("ServicePort", Short(*service_port)),
        ] {
            set(name, value);
        }
    }
}

/// Rows that are not written yet, by column.
pub struct RowGroup {
    columns: Vec<Column>,
    rows: usize,
    /// Bytes of text, each text once per column.
    text: usize,
    /// For addresses.
    scratch: String,
}

struct Column {
    name: String,
    logical: Option<LogicalType>,
    repetition: Repetition,
    values: Values,
    /// Levels of Parquet's nesting: 0 is missing, 1 is there, 2 is an element of a list that is there.
    levels: Vec<i16>,
}

enum Values {
    Flags(Vec<bool>),
    Ints(Vec<i32>),
    Longs(Vec<i64>),
    Texts(Texts),
    /// With a level for each element: 0 begins a row, 1 continues it.
    Lists(Texts, Vec<i16>),
}

/// Each text once, and which one each value is.
#[derive(Default)]
struct Texts {
    numbers: HashMap<Box<str>, u32>,
    values: Vec<u32>,
}

impl Texts {
    /// Returns how many bytes are new.
    fn push(&mut self, text: &str) -> usize {
        if let Some(number) = self.numbers.get(text) {
            self.values.push(*number);
            return 0;
        }
        // A row group has fewer.
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        self.numbers.insert(text.into(), number);
        self.values.push(number);
        text.len()
    }

    fn values(self) -> Vec<ByteArray> {
        let mut distinct = vec![ByteArray::new(); self.numbers.len()];
        for (text, number) in self.numbers {
            distinct[number as usize] = text.into_boxed_bytes().into_vec().into();
        }
        self.values.iter().map(|number| distinct[*number as usize].clone()).collect()
    }
}

impl Default for RowGroup {
    fn default() -> Self {
        let mut columns = Vec::new();
        fields(&Flow::default(), |end, name, value| columns.push(Column::new(format!("{end}{name}"), &value)));
        Self { columns, rows: 0, text: 0, scratch: String::new() }
    }
}

impl RowGroup {
    /// Appends a row.
    pub fn push(&mut self, flow: &Flow) {
        let mut columns = self.columns.iter_mut();
        fields(flow, |_, _, value| {
            if let Some(column) = columns.next() {
                self.text += column.push(&value, &mut self.scratch);
            }
        });
        self.rows += 1;
    }

    pub const fn rows(&self) -> usize {
        self.rows
    }

    pub const fn text(&self) -> usize {
        self.text
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| &*column.name)
    }

    pub fn schema(&self) -> Result<Type> {
        let columns: Result<_> = self.columns.iter().map(|column| column.schema().map(TypePtr::from)).collect();
        Type::group_type_builder("flow").with_fields(columns?).build()
    }

    pub fn write(self, group: &mut SerializedRowGroupWriter<'_, Vec<u8>>) -> Result<()> {
        self.columns.into_iter().try_for_each(|column| column.write(group))
    }
}

impl Column {
    fn new(name: String, value: &Value<'_>) -> Self {
        let (values, logical) = match value {
            Value::Time(_) => (Values::Longs(Vec::new()), Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
            Value::Byte(_) => (Values::Ints(Vec::new()), Some(LogicalType::integer(8, false))),
            Value::Short(_) => (Values::Ints(Vec::new()), Some(LogicalType::integer(16, false))),
            Value::Long(_) => (Values::Longs(Vec::new()), Some(LogicalType::integer(64, false))),
            Value::Flag(_) => (Values::Flags(Vec::new()), None),
            Value::Text(_) | Value::Address(_) => (Values::Texts(Texts::default()), Some(LogicalType::String)),
            Value::Texts(_) => (Values::Lists(Texts::default(), Vec::new()), Some(LogicalType::String)),
        };
        let is_required = matches!(value, Value::Time(_) | Value::Flag(_));
        let repetition = if is_required { Repetition::REQUIRED } else { Repetition::OPTIONAL };
        Self { name, logical, repetition, values, levels: Vec::new() }
    }

    fn schema(&self) -> Result<Type> {
        let leaf = |name, physical, repetition| {
            let leaf = Type::primitive_type_builder(name, physical).with_repetition(repetition);
            leaf.with_logical_type(self.logical.clone()).build()
        };
        let physical = match &self.values {
            Values::Flags(_) => Physical::BOOLEAN,
            Values::Ints(_) => Physical::INT32,
            Values::Longs(_) => Physical::INT64,
            Values::Texts(_) => Physical::BYTE_ARRAY,
            Values::Lists(..) => {
                let element = leaf("element", Physical::BYTE_ARRAY, Repetition::REQUIRED)?;
                let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
                let list = list.with_fields(vec![element.into()]).build()?;
                let whole = Type::group_type_builder(&self.name).with_repetition(self.repetition);
                return whole.with_logical_type(Some(LogicalType::List)).with_fields(vec![list.into()]).build();
            }
        };
        leaf(&self.name, physical, self.repetition)
    }

    /// Returns how many bytes of text are new.
    fn push(&mut self, value: &Value<'_>, scratch: &mut String) -> usize {
        let mut new = 0;
        match (&mut self.values, value) {
            (Values::Flags(flags), Value::Flag(flag)) => {
                flags.push(*flag);
                return 0;
            }
            (Values::Longs(longs), Value::Time(time)) => {
                longs.push(time.cast_signed());
                return 0;
            }
            (Values::Longs(longs), Value::Long(Some(long))) => longs.push(long.cast_signed()),
            (Values::Ints(ints), Value::Byte(Some(byte))) => ints.push((*byte).into()),
            (Values::Ints(ints), Value::Short(Some(short))) => ints.push((*short).into()),
            (Values::Texts(texts), Value::Text(Some(text))) => new = texts.push(text),
            (Values::Texts(texts), Value::Address(Some(address))) => {
                scratch.clear();
                let _ = write!(scratch, "{address}");
                new = texts.push(scratch);
            }
            (Values::Lists(texts, continued), Value::Texts(list @ [_, ..])) => {
                for (at, text) in list.iter().enumerate() {
                    new += texts.push(text);
                    continued.push((at > 0).into());
                    self.levels.push(2);
                }
                return new;
            }
            (values, _) => {
                self.levels.push(0);
                if let Values::Lists(_, continued) = values {
                    continued.push(0);
                }
                return 0;
            }
        }
        self.levels.push(1);
        new
    }

    fn write(self, group: &mut SerializedRowGroupWriter<'_, Vec<u8>>) -> Result<()> {
        let Some(mut column) = group.next_column()? else { return Ok(()) };
        let levels = (self.repetition == Repetition::OPTIONAL).then_some(&*self.levels);
        match self.values {
            Values::Flags(flags) => column.typed::<BoolType>().write_batch(&flags, levels, None)?,
            Values::Ints(ints) => column.typed::<Int32Type>().write_batch(&ints, levels, None)?,
            Values::Longs(longs) => column.typed::<Int64Type>().write_batch(&longs, levels, None)?,
            Values::Texts(texts) => column.typed::<ByteArrayType>().write_batch(&texts.values(), levels, None)?,
            Values::Lists(texts, continued) => {
                column.typed::<ByteArrayType>().write_batch(&texts.values(), levels, Some(&continued))?
            }
        };
        column.close()
    }
}
