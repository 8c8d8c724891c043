package index

import (
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layertar"
)

// maxTarBytes bounds the uncompressed size of one layer: EROFS counts blocks
// of 512 bytes in 32 bits.
const maxTarBytes = 512 << 32

// LayerMeta names a layer and gives its sizes in bytes.
type LayerMeta struct {
	Blob      digest.Digest  `json:"blob"`      // of the compressed layer, as served
	BlobBytes int64          `json:"blobBytes"` // compressed
	DiffID    digest.Digest  `json:"diffID"`    // of the uncompressed tar
	TarBytes  int64          `json:"tarBytes"`  // uncompressed
	Format    inflate.Format `json:"format"`
	SpanBytes int64          `json:"spanBytes"`
	Entries   int64          `json:"entries"` // of the tar

	extra map[string]json.RawMessage
}

// SpanCount is the number of spans that cover the layer.
func (m *LayerMeta) SpanCount() int64 { return (m.TarBytes + SpanBytes - 1) / SpanBytes }

func (m *LayerMeta) check() error {
	if err := m.Blob.Validate(); err != nil {
		return corrupt("meta", -1, "layer digest %q: %v", m.Blob, err)
	}
	if err := m.DiffID.Validate(); err != nil {
		return corrupt("meta", -1, "diffID %q: %v", m.DiffID, err)
	}
	if m.BlobBytes < 0 || m.BlobBytes > 1<<50 || m.TarBytes < 0 || m.TarBytes > maxTarBytes {
		return corrupt("meta", -1, "layer %s has %d bytes, %d unpacked", m.Blob, m.BlobBytes, m.TarBytes)
	}
	if m.SpanBytes != SpanBytes {
		return corrupt("meta", -1, "spans of %d bytes, this thaw reads spans of %d", m.SpanBytes, SpanBytes)
	}
	if m.Format > inflate.Zstd {
		return corrupt("meta", -1, "layer format %d is unknown", m.Format)
	}
	return nil
}

// Layer is the index of one layer.
type Layer struct {
	LayerMeta
	Spans   []Span
	Entries []layertar.Entry
	Windows []byte // window records, in span order

	unknown []section
}

// Encode returns the layer blob and the offset of its windows section, from
// where Span.OffsetWindow counts.
func (l *Layer) Encode() (blob []byte, offsetWindows int64, err error) {
	m := l.LayerMeta
	m.Entries = int64(len(l.Entries))
	meta, err := marshalExtra(m, m.extra)
	if err != nil {
		return nil, 0, fmt.Errorf("encode index of layer %s: %w", l.Blob, err)
	}
	sections := []section{
		plain(sectionMeta, meta),
		packed(sectionSpans, encodeSpans(nil, l.Spans)),
		packed(sectionEntries, encodeEntries(l.Entries)),
	}
	sections = append(sections, l.unknown...)
	sections = append(sections, plain(sectionWindows, l.Windows))
	blob, offsets := encodeSections(kindLayer, sections)
	return blob, offsets[len(offsets)-1], nil
}

// DecodeLayer reads a layer blob. The result may alias b.
func DecodeLayer(b []byte) (*Layer, error) {
	l, _, err := decodeLayer(b)
	return l, err
}

// decodeLayer also returns the offset of the windows section.
func decodeLayer(b []byte) (*Layer, int64, error) {
	sections, offsets, err := decodeSections(b, kindLayer)
	if err != nil {
		return nil, 0, err
	}
	l := &Layer{unknown: unknown(sections, sectionMeta, sectionSpans, sectionEntries, sectionWindows)}
	meta, err := rawSection(sections, sectionMeta)
	if err != nil {
		return nil, 0, err
	}
	if l.extra, err = unmarshalExtra(meta, &l.LayerMeta); err != nil {
		return nil, 0, err
	}
	if err := l.check(); err != nil {
		return nil, 0, err
	}
	windows, at, err := find(sections, sectionWindows)
	if err != nil {
		return nil, 0, err
	}
	if windows.encoding != encodingRaw {
		return nil, 0, corrupt("section table", -1, "windows are compressed as a whole")
	}
	l.Windows = windows.stored
	spans, err := rawSection(sections, sectionSpans)
	if err != nil {
		return nil, 0, err
	}
	if int64(len(spans)) != l.SpanCount()*spanRecordBytes {
		return nil, 0, corrupt("span table", -1, "%d bytes for %d spans", len(spans), l.SpanCount())
	}
	if l.Spans, err = decodeSpans(spans, l.SpanCount(), l.BlobBytes, int64(len(l.Windows))); err != nil {
		return nil, 0, err
	}
	entries, err := rawSection(sections, sectionEntries)
	if err != nil {
		return nil, 0, err
	}
	l.Entries, err = decodeEntries(entries, l.LayerMeta.Entries, l.TarBytes)
	return l, offsets[at], err
}

func rawSection(sections []section, kind uint32) ([]byte, error) {
	s, _, err := find(sections, kind)
	if err != nil {
		return nil, err
	}
	return s.raw()
}

// marshalExtra writes v as a JSON object with the fields of extra that v does
// not have, sorted by name: unknown fields survive, and the result is the same
// each time.
func marshalExtra(v any, extra map[string]json.RawMessage) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return b, err
	}
	known := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &known); err != nil {
		return nil, err
	}
	for k, f := range extra {
		if _, ok := known[k]; !ok {
			known[k] = f
		}
	}
	return json.Marshal(known)
}

// unmarshalExtra reads a JSON object into v and returns the fields that v does
// not have.
func unmarshalExtra(b []byte, v any) (map[string]json.RawMessage, error) {
	if err := json.Unmarshal(b, v); err != nil {
		return nil, corrupt("meta", -1, "%v", err)
	}
	all, known := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, corrupt("meta", -1, "%v", err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		return nil, corrupt("meta", -1, "%v", err)
	}
	if err := json.Unmarshal(again, &known); err != nil {
		return nil, corrupt("meta", -1, "%v", err)
	}
	for k := range known {
		delete(all, k)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}
