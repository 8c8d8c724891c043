package inflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

func skippable(n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, zstdSkippableMagic+7)
	return append(binary.LittleEndian.AppendUint32(b, uint32(n)), noise(n)...)
}

func TestScanZstd(t *testing.T) {
	data := sample(700_000)
	var many [][]byte
	for i := range 100 {
		many = append(many, zstded(t, data[i*7000:(i+1)*7000], zstd.WithEncoderCRC(i%2 == 0)), skippable(i))
	}
	rle := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 0x03, 0x00, 0x02, 'x'} // one block of 16 KiB times x
	for _, c := range []struct {
		name string
		blob []byte
		want []byte
	}{
		{"one frame", zstded(t, data), data},
		{"best", zstded(t, data, zstd.WithEncoderLevel(zstd.SpeedBestCompression)), data},
		{"no checksum", zstded(t, data, zstd.WithEncoderCRC(false)), data},
		{"single segment", zstded(t, data, zstd.WithSingleSegment(true)), data},
		{"frames", slices.Concat(many...), data},
		{"noise", zstded(t, noise(500_000)), noise(500_000)},
		{"frames of a span", slices.Concat(zstded(t, data[:MinSpanBytes]), zstded(t, data[MinSpanBytes:2*MinSpanBytes])), data[:2*MinSpanBytes]},
		{"skippable around", slices.Concat(skippable(600_000), zstded(t, data), skippable(6_000_000)), data},
		{"empty", zstded(t, nil, zstd.WithZeroFrames(true)), nil},
		{"run", slices.Concat(rle, rle, rle), bytes.Repeat([]byte("x"), 3*16384)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, spanBytes := range []int64{MinSpanBytes, 99_999, DefaultSpanBytes} {
				spans, res, err := scanAll(t, bytes.NewReader(c.blob), ScanOptions{Format: Zstd, SpanBytes: spanBytes, Prove: true})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(join(spans), c.want) {
					t.Fatal("wrong output")
				}
				if res.BytesCompressed != int64(len(c.blob)) || res.BytesUncompressed != int64(len(c.want)) {
					t.Errorf("result %+v", res)
				}
				checkSpans(t, c.blob, c.want, spans, spanBytes)
			}
		})
	}
}

// TestZstdPoints checks that points are at the nearest frame.
func TestZstdPoints(t *testing.T) {
	data := sample(4 * MinSpanBytes)
	a, b := zstded(t, data[:MinSpanBytes+1000]), zstded(t, data[MinSpanBytes+1000:3*MinSpanBytes])
	blob := slices.Concat(a, b, skippable(9), zstded(t, data[3*MinSpanBytes:]))
	var got []Point
	for _, s := range collect(t, blob, ScanOptions{Format: Zstd, SpanBytes: MinSpanBytes}) {
		got = append(got, s.Point)
	}
	second := int64(len(a))
	want := []Point{
		{Kind: KindMember},
		{Kind: KindMember, OffsetUncompressed: MinSpanBytes, Skip: MinSpanBytes},
		{Kind: KindMember, OffsetUncompressed: 2 * MinSpanBytes, OffsetCompressed: second, Skip: MinSpanBytes - 1000},
		{Kind: KindMember, OffsetUncompressed: 3 * MinSpanBytes, OffsetCompressed: second + int64(len(b)) + 17},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("points (-want +got):\n%s", diff)
	}
}

func TestZstdRefuses(t *testing.T) {
	good := zstded(t, sample(10_000))
	frame := func(b ...byte) []byte { return append([]byte{0x28, 0xb5, 0x2f, 0xfd}, b...) }
	bad := bytes.Clone(good)
	bad[len(bad)-1] ^= 1
	for _, c := range []struct {
		name, reason string
		blob         []byte
	}{
		{"garbage", "not a zstd frame", slices.Concat(good, []byte("garbage"))},
		{"no frame", "no zstd frame", skippable(5)},
		{"window", "window of 268435456 bytes", frame(0, (28-10)<<3, 1, 0, 0)},
		{"single segment window", "window of 4294967295 bytes", frame(0xa0, 255, 255, 255, 255, 1, 0, 0)},
		{"huge window", "window of", frame(0xe0, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0)},
		{"reserved flag", "reserved flag", frame(8, 0x58, 1, 0, 0)},
		{"block type", "block type", frame(0, 0x58, 7, 0, 0)},
		{"dictionary", "zstd frame", frame(1, 0x58, 9, 1, 0, 0)},
		{"checksum", "zstd frame", bad},
		{"short skippable frame", "skippable", skippable(9)[:10]},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := scanErr(t, bytes.NewReader(c.blob), ScanOptions{Format: Zstd})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want %q", err, c.reason)
			}
		})
	}
	var dec Decoder
	_, err := dec.Decode(make([]byte, 100), Point{Kind: KindMember}, frame(0, (28-10)<<3, 1, 0, 0))
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("decode of a frame with a large window: %v", err)
	}
}
