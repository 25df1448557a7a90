//! What records are in files.

use std::{io, sync::Arc};

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{Format, columns::RowGroup};
use crate::record::Record;

/// Rows of a row group. Engines read these in parallel, and each column of one as a whole. Until it is written, it takes about 80 MB.
const ROWS: u32 = if cfg!(test) { 100 } else { 80 << 10 };
/// Bytes of text in it, without repetitions, at most about so many.
const TEXT: usize = 16 << 20;

/// Makes bytes of records. Pure.
#[derive(Debug)]
pub enum Encoder {
    /// The lines as the collector wrote them.
    Lines,
    Parquet(Box<Parquet>),
}

/// A file of Parquet.
pub struct Parquet {
    writer: SerializedFileWriter<Vec<u8>>,
    rows: RowGroup,
}

impl Encoder {
    pub fn new(format: Format) -> io::Result<Self> {
        Ok(match format {
            Format::JsonLines => Self::Lines,
            Format::Parquet => Self::Parquet(Box::new(Parquet::new()?)),
        })
    }

    /// Appends what can be written already.
    pub fn push(&mut self, record: &Record, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Lines => {
                for line in record.lines() {
                    out.extend_from_slice(line.text.as_bytes());
                    out.push(b'\n');
                }
            }
            Self::Parquet(file) => {
                file.rows.push(record);
                if file.rows.rows() >= ROWS || file.rows.text() >= TEXT {
                    file.flush(out)?;
                }
            }
        }
        Ok(())
    }

    /// Appends the rest.
    pub fn finish(self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Lines => {}
            Self::Parquet(mut file) => {
                file.flush(out)?;
                file.writer.finish()?;
                out.append(file.writer.inner_mut());
            }
        }
        Ok(())
    }
}

impl Parquet {
    fn new() -> io::Result<Self> {
        let rows = RowGroup::default();
        let is_distinct =
            |column: &str| ["TimeFlowStartMs", "TimeFlowEndMs", "TimeFlowRttNs", "ConnId"].contains(&column);
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("podtap-exporter ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            // Smallest and largest values of row groups. Those of pages would be larger than many pages.
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true);
        for name in rows.names().filter(|name| is_distinct(name)) {
            let column = ColumnPath::from(name);
            properties = properties.set_column_dictionary_enabled(column.clone(), false);
            if name.starts_with("Time") {
                properties = properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
        }
        let writer = SerializedFileWriter::new(Vec::new(), Arc::new(rows.schema()?), Arc::new(properties.build()))?;
        Ok(Self { writer, rows })
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.rows.rows() > 0 {
            let rows = std::mem::take(&mut self.rows);
            let mut group = self.writer.next_row_group()?;
            rows.write(&mut group)?;
            group.close()?;
            self.writer.flush()?;
            out.append(self.writer.inner_mut());
        }
        Ok(())
    }
}

impl std::fmt::Debug for Parquet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Parquet").field("rows", &self.rows.rows()).finish_non_exhaustive()
    }
}
