/// What is added to scores at each distance, `[num_heads, 2 · max_seqlen - 1]`: entry
/// `max_seqlen - 1 + key - query`. `table` is `[num_buckets, num_heads]`.
///
/// # Source
///
/// Raffel et al. 2020, *Exploring the Limits of Transfer Learning*, §2.1, bidirectional.
pub(crate) fn by_distance(
    table: &[f32],
    num_heads: usize,
    max_distance: usize,
    max_seqlen: usize,
) -> Vec<f32> {
    let num_buckets = table.len() / num_heads;
    let last = max_seqlen.max(1) as i64 - 1;
    let buckets: Vec<usize> =
        (-last..=last).map(|distance| bucket(distance, num_buckets, max_distance)).collect();
    let heads = 0..num_heads;
    heads.flat_map(|head| buckets.iter().map(move |b| table[b * num_heads + head])).collect()
}

/// Bucket of a key that is `distance` tokens behind the query: half of them for either side, the
/// nearer half of those one a distance, the others ever wider.
fn bucket(distance: i64, num_buckets: usize, max_distance: usize) -> usize {
    let side = num_buckets / 2;
    let exact = side / 2;
    let magnitude = distance.unsigned_abs() as usize;
    let within = if magnitude < exact {
        magnitude
    } else {
        let ratio =
            (magnitude as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
        (exact + (ratio * (side - exact) as f32) as usize).min(side - 1)
    };
    within + if distance > 0 { side } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_t5() {
        let of = |distance| bucket(distance, 32, 128);
        assert_eq!([0, -1, -7, -8, -127, -1000].map(of), [0, 1, 7, 8, 15, 15]);
        assert_eq!([1, 7, 8, 16, 1000].map(of), [17, 23, 24, 26, 31]);
    }
}
