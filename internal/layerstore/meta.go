package layerstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// SpanBytes is the span size of all indexes of ours: 1 MiB.
const SpanBytes = 1 << 20

const (
	metaVersion  = 1
	minSpanBytes = 512
	maxSpanBytes = 64 << 20
	maxSpans     = 1 << 20 // 1 TiB of spans of 1 MiB
	maxMetaBytes = 64 << 20
)

// Meta describes a layer: what its image and its index say about it. It must not
// be changed after it was handed over.
type Meta struct {
	Blob        digest.Digest // of the layer as served; its name in the store
	BlobBytes   int64
	DiffID      digest.Digest // of the uncompressed tar, from the image config
	TarBytes    int64
	SpanBytes   int64      // a power of two from 512 to 64 MiB
	SpanDigests [][32]byte // sha256 of each span; the last one may be shorter
}

// Spans returns the number of spans.
func (m *Meta) Spans() int { return len(m.SpanDigests) }

// Span returns where span i lies in the tar. i must be in range.
func (m *Meta) Span(i int) (off, sizeBytes int64) {
	off = int64(i) * m.SpanBytes
	return off, min(m.SpanBytes, m.TarBytes-off)
}

// Validate reports what makes a Meta unusable: digests that are not sha256,
// sizes out of range, or a number of span digests that does not fit the size.
func (m *Meta) Validate() error {
	if err := checkDigest(m.Blob); err != nil {
		return fmt.Errorf("check layer meta: blob: %w", err)
	}
	if err := checkDigest(m.DiffID); err != nil {
		return fmt.Errorf("check layer %s: diffID: %w", m.Blob, err)
	}
	switch n := m.SpanBytes; {
	case n < minSpanBytes || n > maxSpanBytes || n&(n-1) != 0:
		return fmt.Errorf("check layer %s: span size %d is not a power of two from %d to %d", m.Blob, n, minSpanBytes, maxSpanBytes)
	case m.BlobBytes < 0 || m.TarBytes < 0 || m.TarBytes > maxSpans*n:
		return fmt.Errorf("check layer %s: size out of range (blob %d, tar %d)", m.Blob, m.BlobBytes, m.TarBytes)
	case int64(len(m.SpanDigests)) != (m.TarBytes+n-1)/n:
		return fmt.Errorf("check layer %s: %d span digests for %d bytes", m.Blob, len(m.SpanDigests), m.TarBytes)
	}
	return nil
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is stored", d)
	}
	return nil
}

// TableDigest names the span table: everything that decides which bytes are
// believed. It is the sha256 of blob and diffID (raw), tar and span size
// (little-endian) and the span digests. m must be valid.
func (m *Meta) TableDigest() digest.Digest {
	sum := m.tableSum()
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}

func (m *Meta) tableSum() (sum [32]byte) {
	h := sha256.New()
	h.Write([]byte(m.Blob + "\n" + m.DiffID + "\n"))
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(m.TarBytes))
	binary.LittleEndian.PutUint64(b[8:], uint64(m.SpanBytes))
	h.Write(b[:])
	for i := range m.SpanDigests {
		h.Write(m.SpanDigests[i][:])
	}
	h.Sum(sum[:0])
	return sum
}

// metaFile is meta.json.
type metaFile struct {
	Version     int           `json:"version"`
	Blob        digest.Digest `json:"blob"`
	BlobBytes   int64         `json:"blobBytes"`
	DiffID      digest.Digest `json:"diffID"`
	TarBytes    int64         `json:"tarBytes"`
	SpanBytes   int64         `json:"spanBytes"`
	SpanDigests []byte        `json:"spanDigests"` // 32 bytes each, base64
}

func encodeMeta(m *Meta) ([]byte, error) {
	return json.Marshal(metaFile{
		Version: metaVersion, Blob: m.Blob, BlobBytes: m.BlobBytes, DiffID: m.DiffID,
		TarBytes: m.TarBytes, SpanBytes: m.SpanBytes,
		SpanDigests: bytes.Join(digestSlices(m.SpanDigests), nil),
	})
}

func digestSlices(ds [][32]byte) [][]byte {
	out := make([][]byte, len(ds))
	for i := range ds {
		out[i] = ds[i][:]
	}
	return out
}

func decodeMeta(b []byte) (Meta, error) {
	if len(b) > maxMetaBytes {
		return Meta{}, &CorruptError{Reason: "larger than the limit"}
	}
	var f metaFile
	if err := json.Unmarshal(b, &f); err != nil {
		return Meta{}, &CorruptError{Reason: err.Error()}
	}
	if f.Version != metaVersion {
		return Meta{}, &CorruptError{Reason: fmt.Sprintf("version %d is not known", f.Version)}
	}
	if len(f.SpanDigests)%32 != 0 {
		return Meta{}, &CorruptError{Reason: fmt.Sprintf("%d bytes of span digests", len(f.SpanDigests))}
	}
	m := Meta{Blob: f.Blob, BlobBytes: f.BlobBytes, DiffID: f.DiffID, TarBytes: f.TarBytes, SpanBytes: f.SpanBytes}
	m.SpanDigests = make([][32]byte, 0, len(f.SpanDigests)/32)
	for c := range slices.Chunk(f.SpanDigests, 32) {
		m.SpanDigests = append(m.SpanDigests, [32]byte(c))
	}
	if err := m.Validate(); err != nil {
		return Meta{}, &CorruptError{Reason: err.Error()}
	}
	return m, nil
}
