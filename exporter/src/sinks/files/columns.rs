//! Records as rows, and rows that are not written yet.
//!
//! A row has both directions of a record: the fields of the client's line, so that `Src` is the client, and what the server's line counts
//! with the suffix `Reply`. Rows of a row group are sorted by who calls whom: that makes files a quarter smaller, and queries faster.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr, num::NonZeroU32, sync::LazyLock};

use parquet::{
    basic::{LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type},
    errors::Result,
    file::writer::SerializedRowGroupWriter,
    schema::types::{Type, TypePtr},
};

use crate::{
    flow::{Dns, End, Flow},
    record::Record,
};

/// By what rows are sorted. More columns follow from these: the names of pods, of their workloads and nodes.
const SORTED_BY: [&str; 5] = ["SrcK8S_OwnerName", "DstK8S_OwnerName", "DstAddr", "SrcAddr", "XlatDstAddr"];

/// A field of a row.
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
fn fields<'a>(record: &'a Record, mut add: impl FnMut(&'static str, &'static str, Value<'a>)) {
    use Value::{Byte, Flag, Long, Short, Text, Time};
    let [sent, received] = [&record.sent, &record.received].map(|line| line.as_ref().map(|line| &line.flow));
    // Without `..`: a new field must be a column.
    let Flow {
        start,
        end,
        ether_type,
        protocol,
        bytes: _,
        packets: _,
        flags: _,
        icmp_type,
        icmp_code,
        handshake,
        dns: Dns { id, name, response_code, latency },
        payload: _,
        missing_by_mirror: _,
        missing_by_collector: _,
        retransmitted: _,
        end_reason,
        opener,
        preexisting,
        degraded,
        reply: _,
        failure,
        connection,
        sni,
        translated_by,
        zone,
        source,
        destination,
        translated_source,
        translated_destination,
    } = sent.or(received).unwrap_or(&NO_FLOW);
    let text = |text: &'a Option<String>| Text(text.as_deref());
    let long = |count: fn(&Flow) -> Option<u64>| [sent, received].map(|flow| Long(flow.and_then(count)));
    let flags = [sent, received].map(|flow| Short(flow.and_then(|flow| flow.flags)));
    for (name, value) in [
        ("TimeFlowStartMs", Time(*start)),
        ("TimeFlowEndMs", Time(*end)),
        ("Etype", Short(Some(*ether_type))),
        ("Proto", Byte(Some(*protocol))),
    ] {
        add("", name, value);
    }
    for (names, values) in [
        (["Bytes", "BytesReply"], long(|flow| Some(flow.bytes))),
        (["Packets", "PacketsReply"], long(|flow| Some(flow.packets))),
        (["Flags", "FlagsReply"], flags),
        (["PayloadBytes", "PayloadBytesReply"], long(|flow| flow.payload)),
        (["MirrorMissingBytes", "MirrorMissingBytesReply"], long(|flow| flow.missing_by_mirror)),
        (["CollectorMissingBytes", "CollectorMissingBytesReply"], long(|flow| flow.missing_by_collector)),
        (["RetransBytes", "RetransBytesReply"], long(|flow| flow.retransmitted)),
    ] {
        names.into_iter().zip(values).for_each(|(name, value)| add("", name, value));
    }
    for (name, value) in [
        ("IcmpType", Byte(*icmp_type)),
        ("IcmpCode", Byte(*icmp_code)),
        ("TimeFlowRttNs", Long(*handshake)),
        ("DnsId", Short(*id)),
        ("DnsName", text(name)),
        ("DnsFlagsResponseCode", text(response_code)),
        ("DnsLatencyMs", Long(*latency)),
        ("FlowEndReason", text(end_reason)),
        ("Opener", text(opener)),
        ("Preexisting", Flag(*preexisting)),
        ("Degraded", Flag(*degraded)),
        ("Failure", text(failure)),
        ("ConnId", text(connection)),
        ("TlsSni", text(sni)),
        ("XlatBy", text(translated_by)),
        ("ZoneId", Short(*zone)),
    ] {
        add("", name, value);
    }
    let (client, server) = if sent.is_some() { (source, destination) } else { (destination, source) };
    let translated = [translated_source, translated_destination].map(|end| end.as_ref().unwrap_or(&NO_FLOW.source));
    for (prefix, end) in [("Src", client), ("Dst", server), ("XlatSrc", translated[0]), ("XlatDst", translated[1])] {
        fields_of_end(end, !prefix.starts_with("Xlat"), |name, value| add(prefix, name, value));
    }
}

/// Nothing is known.
static NO_FLOW: LazyLock<Flow> = LazyLock::new(Flow::default);

/// `is_addressed`: frames have this address. Ends after translation are pods: they lack what is said of services and networks.
fn fields_of_end<'a>(end: &'a End, is_addressed: bool, mut add: impl FnMut(&'static str, Value<'a>)) {
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
        add(name, value);
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
            add(name, value);
        }
    }
}

/// Rows that are not written yet, by column.
pub struct RowGroup {
    columns: Vec<Column>,
    rows: u32,
    /// Bytes of text, each text once per column.
    text: usize,
    /// For addresses and lists.
    scratch: String,
}

struct Column {
    name: String,
    logical: Option<LogicalType>,
    values: Values,
}

enum Values {
    Times(Vec<u64>),
    Flags(Vec<bool>),
    Ints(Vec<Option<u16>>),
    Longs(Vec<Option<u64>>),
    Texts(Texts),
    /// Elements are separated by [`SEPARATOR`].
    Lists(Texts),
}

/// It is in no name.
const SEPARATOR: &str = "\0";

/// Each text once, and for each row its number, from 1.
#[derive(Default)]
struct Texts {
    numbers: HashMap<Box<str>, NonZeroU32>,
    rows: Vec<Option<NonZeroU32>>,
}

impl Texts {
    /// Returns how many bytes are new.
    fn push(&mut self, text: &str) -> usize {
        let known = self.numbers.get(text).copied();
        let number = known.unwrap_or_else(|| {
            // There are fewer than rows.
            let next = u32::try_from(self.numbers.len())
                .map_or(NonZeroU32::MAX, |count| NonZeroU32::MIN.saturating_add(count));
            self.numbers.insert(text.into(), next);
            next
        });
        self.rows.push(Some(number));
        if known.is_some() { 0 } else { text.len() }
    }

    /// The text of each number, the first one being that of 1.
    fn distinct(&self) -> Vec<&str> {
        let mut texts = vec![""; self.numbers.len()];
        for (text, number) in &self.numbers {
            texts[number.get() as usize - 1] = text;
        }
        texts
    }
}

impl Default for RowGroup {
    fn default() -> Self {
        let mut columns = Vec::new();
        let add = |end: &str, name: &str, value: Value<'_>| columns.push(Column::new(format!("{end}{name}"), &value));
        fields(&Record { sent: None, received: None }, add);
        Self { columns, rows: 0, text: 0, scratch: String::new() }
    }
}

impl RowGroup {
    /// Appends a row.
    pub fn push(&mut self, record: &Record) {
        let mut columns = self.columns.iter_mut();
        fields(record, |_, _, value| {
            if let Some(column) = columns.next() {
                self.text += column.push(&value, &mut self.scratch);
            }
        });
        self.rows += 1;
    }

    pub const fn rows(&self) -> u32 {
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
        let keys =
            SORTED_BY.map(|name| self.columns.iter().find(|column| column.name == name).and_then(Column::numbers));
        let mut order: Vec<usize> = (0..self.rows as usize).collect();
        order.sort_by_key(|row| keys.map(|numbers| numbers.and_then(|numbers| numbers[*row])));
        self.columns.into_iter().try_for_each(|column| column.write(&order, group))
    }
}

impl Column {
    fn new(name: String, value: &Value<'_>) -> Self {
        let (values, logical) = match value {
            Value::Time(_) => (Values::Times(Vec::new()), Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
            Value::Byte(_) => (Values::Ints(Vec::new()), Some(LogicalType::integer(8, false))),
            Value::Short(_) => (Values::Ints(Vec::new()), Some(LogicalType::integer(16, false))),
            Value::Long(_) => (Values::Longs(Vec::new()), Some(LogicalType::integer(64, false))),
            Value::Flag(_) => (Values::Flags(Vec::new()), None),
            Value::Text(_) | Value::Address(_) => (Values::Texts(Texts::default()), Some(LogicalType::String)),
            Value::Texts(_) => (Values::Lists(Texts::default()), Some(LogicalType::String)),
        };
        Self { name, logical, values }
    }

    fn schema(&self) -> Result<Type> {
        let leaf = |name, physical, repetition| {
            let leaf = Type::primitive_type_builder(name, physical).with_repetition(repetition);
            leaf.with_logical_type(self.logical.clone()).build()
        };
        let (physical, repetition) = match &self.values {
            Values::Times(_) => (Physical::INT64, Repetition::REQUIRED),
            Values::Flags(_) => (Physical::BOOLEAN, Repetition::REQUIRED),
            Values::Ints(_) => (Physical::INT32, Repetition::OPTIONAL),
            Values::Longs(_) => (Physical::INT64, Repetition::OPTIONAL),
            Values::Texts(_) => (Physical::BYTE_ARRAY, Repetition::OPTIONAL),
            Values::Lists(_) => {
                let element = leaf("element", Physical::BYTE_ARRAY, Repetition::REQUIRED)?;
                let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
                let list = list.with_fields(vec![element.into()]).build()?;
                let whole = Type::group_type_builder(&self.name).with_repetition(Repetition::OPTIONAL);
                return whole.with_logical_type(Some(LogicalType::List)).with_fields(vec![list.into()]).build();
            }
        };
        leaf(&self.name, physical, repetition)
    }

    /// Returns how many bytes of text are new.
    fn push(&mut self, value: &Value<'_>, scratch: &mut String) -> usize {
        match (&mut self.values, value) {
            (Values::Times(times), Value::Time(time)) => times.push(*time),
            (Values::Flags(flags), Value::Flag(flag)) => flags.push(*flag),
            (Values::Longs(longs), Value::Long(long)) => longs.push(*long),
            (Values::Ints(ints), Value::Byte(byte)) => ints.push(byte.map(u16::from)),
            (Values::Ints(ints), Value::Short(short)) => ints.push(*short),
            (Values::Texts(texts), Value::Text(Some(text))) => return texts.push(text),
            (Values::Texts(texts), Value::Address(Some(address))) => {
                scratch.clear();
                let _ = write!(scratch, "{address}");
                return texts.push(scratch);
            }
            (Values::Lists(texts), Value::Texts([first, rest @ ..])) => {
                scratch.clear();
                scratch.push_str(first);
                for text in rest {
                    scratch.extend([SEPARATOR, text]);
                }
                return texts.push(scratch);
            }
            (Values::Texts(texts) | Values::Lists(texts), _) => texts.rows.push(None),
            // A column gets the values that it was made for.
            _ => {}
        }
        0
    }

    /// For each row, which text it has.
    fn numbers(&self) -> Option<&[Option<NonZeroU32>]> {
        match &self.values {
            Values::Texts(texts) => Some(&texts.rows),
            _ => None,
        }
    }

    /// Writes rows in this order. Levels are those of Parquet's nesting: 0 is missing, 1 is there.
    fn write(self, order: &[usize], group: &mut SerializedRowGroupWriter<'_, Vec<u8>>) -> Result<()> {
        let Some(mut column) = group.next_column()? else { return Ok(()) };
        match self.values {
            Values::Times(times) => {
                let times: Vec<_> = order.iter().map(|row| times[*row].cast_signed()).collect();
                column.typed::<Int64Type>().write_batch(&times, None, None)?
            }
            Values::Flags(flags) => {
                let flags: Vec<_> = order.iter().map(|row| flags[*row]).collect();
                column.typed::<BoolType>().write_batch(&flags, None, None)?
            }
            Values::Ints(ints) => {
                let (levels, ints) = there(order.iter().map(|row| ints[*row].map(i32::from)));
                column.typed::<Int32Type>().write_batch(&ints, Some(&levels), None)?
            }
            Values::Longs(longs) => {
                let (levels, longs) = there(order.iter().map(|row| longs[*row].map(u64::cast_signed)));
                column.typed::<Int64Type>().write_batch(&longs, Some(&levels), None)?
            }
            Values::Texts(texts) => {
                let distinct: Vec<ByteArray> = texts.distinct().into_iter().map(ByteArray::from).collect();
                let text = |row: &usize| texts.rows[*row].map(|number| distinct[number.get() as usize - 1].clone());
                let (levels, values) = there(order.iter().map(text));
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)?
            }
            Values::Lists(texts) => {
                let split = |list: &str| list.split(SEPARATOR).map(ByteArray::from).collect();
                let distinct: Vec<Vec<ByteArray>> = texts.distinct().into_iter().map(split).collect();
                let (mut levels, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
                for row in order {
                    let list = texts.rows[*row].map(|number| &distinct[number.get() as usize - 1]);
                    // 2 is an element. The first one of a row begins the list.
                    levels.extend(list.map_or(vec![0], |list| vec![2; list.len()]));
                    repeated.extend((0..list.map_or(1, Vec::len)).map(|at| i16::from(at > 0)));
                    values.extend(list.into_iter().flatten().cloned());
                }
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), Some(&repeated))?
            }
        };
        column.close()
    }
}

/// Which values are there, and these.
fn there<T>(values: impl Iterator<Item = Option<T>>) -> (Vec<i16>, Vec<T>) {
    let mut found = Vec::new();
    let levels = values
        .map(|value| {
            let level = value.is_some().into();
            found.extend(value);
            level
        })
        .collect();
    (levels, found)
}
