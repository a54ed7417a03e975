//! A size → the aspect ratio and the resolution that it was made of.

use vidgen_core::{AspectRatio, Resolution, Size};

/// The aspect ratio and the resolution that give `size`, or come closest to it.
pub(super) fn shape(size: Size) -> (AspectRatio, Resolution) {
    let all = AspectRatio::ALL.iter().flat_map(|ratio| Resolution::ALL.iter().map(|resolution| (*ratio, *resolution)));
    all.min_by_key(|(ratio, resolution)| {
        let other = ratio.size(*resolution);
        // The ratio first: a picture of another size can be scaled, one of another shape is cut.
        let skew =
            (u64::from(size.width) * u64::from(other.height)).abs_diff(u64::from(size.height) * u64::from(other.width));
        (
            skew * 1000 / (u64::from(other.width) * u64::from(size.height)).max(1) / 10,
            size.height.abs_diff(other.height),
        )
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_that_a_request_can_have_is_recognised() {
        for ratio in AspectRatio::ALL {
            for resolution in Resolution::ALL {
                assert_eq!(shape(ratio.size(*resolution)), (*ratio, *resolution));
            }
        }
    }

    #[test]
    fn a_size_of_another_kind_is_taken_for_the_closest() {
        assert_eq!(shape(Size { width: 1024, height: 1024 }), (AspectRatio::Square, Resolution::P1080));
        assert_eq!(shape(Size { width: 1280, height: 736 }), (AspectRatio::Wide, Resolution::P720));
        assert_eq!(shape(Size { width: 0, height: 0 }).1, Resolution::P360);
    }
}
