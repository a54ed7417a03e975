//! A video with no encoder: constrained baseline H.264 (ITU-T H.264) of nothing but what needs no
//! transform, in an MP4 whose index comes first.
//!
//! The first picture is rows of one colour each: the first macroblock of a row is written out
//! (`I_PCM`), the others are said to be as their left neighbour, a byte each. In every later
//! picture a bar at the bottom grows by a macroblock when its time has come, and the rest is skipped.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use shiguredo_mp4::boxes::{Avc1Box, AvccBox, SampleEntry, VisualSampleEntryFields};
use shiguredo_mp4::mux::{Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size};
use shiguredo_mp4::{FixedPointNumber, TrackKind, Uint};
use vidgen_core::Result;

use super::{Film, failed};

const PROFILE_BASELINE: u8 = 66;
/// Constrained baseline, and so decoded by everything.
const CONSTRAINTS: u8 = 0b1100_0000;
/// Ticks of a frame; lengths that are no whole number of frames end in a longer last one.
const TICKS: u32 = 1000;

pub(super) fn mp4(film: &Film) -> Result<Bytes> {
    let video = Video::new(film);
    let timescale = film.fps * TICKS;
    let total = (film.duration.as_secs_f64() * f64::from(timescale)).round() as u32;
    let frames = (total / TICKS).max(1);
    let samples: Vec<Vec<u8>> = (0..frames).map(|n| video.picture(n, frames)).collect();

    let options = Mp4FileMuxerOptions {
        reserved_moov_box_size: estimate_maximum_moov_box_size(&[samples.len()]),
        ..Mp4FileMuxerOptions::default()
    };
    let mut muxer = Mp4FileMuxer::with_options(options).map_err(failed)?;
    let mut file = muxer.initial_boxes_bytes().to_vec();
    let mut rest = total;
    for (n, picture) in (1..=frames).zip(&samples) {
        let duration = if n == frames { rest } else { TICKS.min(rest) };
        rest -= duration;
        muxer
            .append_sample(&Sample {
                track_kind: TrackKind::Video,
                sample_entry: (n == 1).then(|| video.entry()),
                keyframe: n == 1,
                timescale: NonZeroU32::new(timescale).unwrap_or(NonZeroU32::MIN),
                duration,
                composition_time_offset: None,
                data_offset: file.len() as u64,
                data_size: picture.len(),
            })
            .map_err(failed)?;
        file.extend_from_slice(picture);
    }
    for (offset, bytes) in muxer.finalize().map_err(failed)?.offset_and_bytes_pairs() {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = offset.saturating_add(bytes.len());
        if end > file.len() {
            file.resize(end, 0);
        }
        if let Some(place) = file.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
    }
    Ok(file.into())
}

struct Video {
    width: u32,
    height: u32,
    /// In macroblocks of 16 by 16.
    columns: u32,
    rows: u32,
    level: u8,
}

impl Video {
    fn new(film: &Film) -> Self {
        let (columns, rows) = (film.width.div_ceil(16), film.height.div_ceil(16));
        let blocks = columns * rows;
        // Table A-1: the most macroblocks of a picture, and of a second.
        let levels = [
            (1620, 40_500, 30),
            (3600, 108_000, 31),
            (5120, 216_000, 32),
            (8192, 245_760, 40),
            (8704, 522_240, 42),
            (36_864, 983_040, 51),
        ];
        let fits = levels.iter().find(|(most, rate, _)| blocks <= *most && blocks * film.fps <= *rate);
        Self { width: film.width, height: film.height, columns, rows, level: fits.map_or(52, |(_, _, level)| *level) }
    }

    /// One picture as a sample: its NAL unit with its length before it.
    fn picture(&self, n: u32, of: u32) -> Vec<u8> {
        let unit = if n == 0 { self.first() } else { self.later(n, of) };
        let length = u32::try_from(unit.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes()[..], &unit].concat()
    }

    fn first(&self) -> Vec<u8> {
        let mut bits = Bits::default();
        bits.ue(0); // first_mb_in_slice
        bits.ue(7); // slice_type: I, all of them
        bits.ue(0); // pic_parameter_set_id
        bits.put(0, 4); // frame_num
        bits.ue(0); // idr_pic_id
        bits.put(0, 2); // no_output_of_prior_pics, long_term_reference
        bits.ue(0); // slice_qp_delta (0 is the same signed)
        bits.ue(1); // disable_deblocking_filter_idc: what is sharp stays so
        for row in 0..self.rows {
            let shade = u8::try_from(row * 100 / self.rows).unwrap_or_default();
            bits.ue(25); // mb_type: I_PCM
            bits.pcm([70 + shade, 160 - shade / 2, 100 + shade / 2]);
            for column in 1..self.columns {
                bits.ue(2); // mb_type: I_16x16, predicted from the left, nothing coded
                bits.ue(1); // intra_chroma_pred_mode: from the left
                bits.ue(0); // mb_qp_delta
                // coeff_token of no coefficients; which code it has depends on how many the
                // neighbours have, and I_PCM counts as 16 (9.2.1).
                if column == 1 { bits.put(0b11, 6) } else { bits.put(1, 1) }
            }
        }
        bits.unit(0x65)
    }

    fn later(&self, n: u32, of: u32) -> Vec<u8> {
        let mut bits = Bits::default();
        bits.ue(0); // first_mb_in_slice
        bits.ue(5); // slice_type: P, all of them
        bits.ue(0); // pic_parameter_set_id
        bits.put(n % 16, 4); // frame_num
        bits.put(0, 3); // no override of the number of references, no reordering, no marking
        bits.ue(0); // slice_qp_delta
        bits.ue(1); // disable_deblocking_filter_idc
        // The bar stands in the last row, and has its whole length in the last picture.
        let (blocks, start) = (self.columns * self.rows, self.columns * (self.rows - 1));
        let bar = |n: u32| self.columns * n / (of - 1).max(1);
        let (from, to) = (start + bar(n - 1), start + bar(n));
        let mut skipped = from;
        for _ in from..to {
            bits.ue(skipped); // mb_skip_run
            bits.ue(30); // mb_type: I_PCM in a P slice
            bits.pcm([235, 128, 128]);
            skipped = 0;
        }
        let rest = if from == to { blocks } else { blocks - to };
        if rest > 0 {
            bits.ue(rest); // mb_skip_run
        }
        bits.unit(0x41)
    }

    fn sps(&self) -> Vec<u8> {
        let mut bits = Bits::default();
        bits.put(u32::from(PROFILE_BASELINE), 8);
        bits.put(u32::from(CONSTRAINTS), 8);
        bits.put(u32::from(self.level), 8);
        bits.ue(0); // seq_parameter_set_id
        bits.ue(0); // log2_max_frame_num_minus4
        bits.ue(2); // pic_order_cnt_type: output in the order of decoding
        bits.ue(1); // max_num_ref_frames
        bits.put(0, 1); // gaps_in_frame_num_value_allowed_flag
        bits.ue(self.columns - 1);
        bits.ue(self.rows - 1);
        bits.put(0b11, 2); // frame_mbs_only_flag, direct_8x8_inference_flag
        let (right, bottom) = ((self.columns * 16 - self.width) / 2, (self.rows * 16 - self.height) / 2);
        if right + bottom > 0 {
            bits.put(1, 1); // frame_cropping_flag; in units of 2 pixels
            [0, right, 0, bottom].into_iter().for_each(|crop| bits.ue(crop));
        } else {
            bits.put(0, 1);
        }
        bits.put(0, 1); // vui_parameters_present_flag
        bits.unit(0x67)
    }

    fn pps() -> Vec<u8> {
        let mut bits = Bits::default();
        bits.ue(0); // pic_parameter_set_id
        bits.ue(0); // seq_parameter_set_id
        bits.put(0, 2); // entropy_coding_mode_flag, bottom_field_pic_order_in_frame_present_flag
        bits.ue(0); // num_slice_groups_minus1
        bits.ue(0); // num_ref_idx_l0_default_active_minus1
        bits.ue(0); // num_ref_idx_l1_default_active_minus1
        bits.put(0, 3); // weighted_pred_flag, weighted_bipred_idc
        bits.ue(0); // pic_init_qp_minus26
        bits.ue(0); // pic_init_qs_minus26
        bits.ue(0); // chroma_qp_index_offset
        bits.put(0b100, 3); // deblocking_filter_control_present_flag, no constrained intra, no redundancy
        bits.unit(0x68)
    }

    fn entry(&self) -> SampleEntry {
        let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
        SampleEntry::Avc1(Avc1Box {
            visual: VisualSampleEntryFields {
                data_reference_index: NonZeroU16::MIN,
                width: side(self.width),
                height: side(self.height),
                horizresolution: FixedPointNumber::new(72, 0),
                vertresolution: FixedPointNumber::new(72, 0),
                frame_count: 1,
                compressorname: [0; 32],
                depth: 24,
            },
            avcc_box: AvccBox {
                avc_profile_indication: PROFILE_BASELINE,
                profile_compatibility: CONSTRAINTS,
                avc_level_indication: self.level,
                length_size_minus_one: Uint::new(3),
                sps_list: vec![self.sps()],
                pps_list: vec![Self::pps()],
                chroma_format: None,
                bit_depth_luma_minus8: None,
                bit_depth_chroma_minus8: None,
                sps_ext_list: Vec::new(),
            },
            unknown_boxes: Vec::new(),
        })
    }
}

/// Bits in the order of the standard.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Bits that make no byte yet.
    pending: u32,
    count: u32,
}

impl Bits {
    /// The `count` low bits of `value`.
    fn put(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.pending = (self.pending << 1) | ((value >> bit) & 1);
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(self.pending.to_le_bytes()[0]);
                (self.pending, self.count) = (0, 0);
            }
        }
    }

    /// An unsigned exponential Golomb code (9.1).
    fn ue(&mut self, value: u32) {
        let bits = 32 - (value + 1).leading_zeros();
        self.put(0, bits - 1);
        self.put(value + 1, bits);
    }

    fn align(&mut self) {
        while self.count != 0 {
            self.put(0, 1);
        }
    }

    /// A macroblock of one colour, written out.
    fn pcm(&mut self, [luma, blue, red]: [u8; 3]) {
        self.align();
        self.bytes.extend([luma; 256]);
        self.bytes.extend([blue; 64]);
        self.bytes.extend([red; 64]);
    }

    /// Ends as a NAL unit with this header byte; what looks like a start code is broken up.
    fn unit(mut self, header: u8) -> Vec<u8> {
        self.put(1, 1); // rbsp_stop_one_bit
        self.align();
        let mut unit = vec![header];
        let mut zeros = 0;
        for byte in self.bytes {
            if zeros == 2 && byte <= 3 {
                unit.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            unit.push(byte);
        }
        unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_unit_looks_like_a_start_code() {
        let mut bits = Bits::default();
        for byte in [0, 0, 1, 0, 0, 0, 0, 0, 3, 7, 0, 0, 4] {
            bits.put(byte, 8);
        }
        // The standard's own rule (7.4.1): 00 00 03 stands before a 00, 01, 02 or 03 only.
        assert_eq!(bits.unit(0x65), [0x65, 0, 0, 3, 1, 0, 0, 3, 0, 0, 3, 0, 3, 7, 0, 0, 4, 0x80]);
    }

    #[test]
    fn numbers_are_coded_as_the_standard_has_them() {
        let coded = |value| {
            let mut bits = Bits::default();
            bits.ue(value);
            bits.unit(0)[1]
        };
        // Table 9-2, each with the stop bit after it.
        let table = [(0, 0b1100_0000), (1, 0b0101_0000), (2, 0b0111_0000), (3, 0b0010_0100), (6, 0b0011_1100)];
        for (value, bits) in table {
            assert_eq!(coded(value), bits, "{value}");
        }
    }
}
