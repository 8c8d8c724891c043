package index

import (
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"
)

// Media types of an index in a registry.
const (
	ArtifactType   = "application/vnd.thaw.index.v1"
	MediaTypeHead  = "application/vnd.thaw.index.head.v1"
	MediaTypeLayer = "application/vnd.thaw.index.layer.v1"
)

// maxLayers bounds the layers of an image; EROFS counts devices in 16 bits and
// overlay stacks end far below.
const maxLayers = 1000

// ImageLayer is what a head knows of one layer.
type ImageLayer struct {
	LayerMeta
	Index         digest.Digest `json:"index"`         // of the layer blob of the index
	IndexBytes    int64         `json:"indexBytes"`    //
	OffsetWindows int64         `json:"offsetWindows"` // of the windows section in that blob
	BytesWindows  int64         `json:"bytesWindows"`
	Spans         []Span        `json:"-"`
}

// Image is the head of an image's index: all that a mount needs.
type Image struct {
	Layers      []ImageLayer
	ErofsDigest digest.Digest // sha256 of the EROFS metadata image
	ErofsBytes  int64

	erofs   section
	extra   map[string]json.RawMessage
	unknown []section
}

type imageMeta struct {
	Layers      []json.RawMessage `json:"layers"`
	ErofsDigest digest.Digest     `json:"erofs"`
	ErofsBytes  int64             `json:"erofsBytes"`
}

// NewImage makes a head of layers, in image order, and the EROFS metadata
// image of their merged tree.
func NewImage(layers []ImageLayer, erofs []byte) *Image {
	return &Image{Layers: layers, ErofsDigest: digest.FromBytes(erofs), ErofsBytes: int64(len(erofs)), erofs: packed(sectionErofs, erofs)}
}

// Erofs returns the EROFS metadata image, decompressed and verified.
func (m *Image) Erofs() ([]byte, error) {
	b, err := m.erofs.raw()
	if err != nil {
		return nil, err
	}
	if d := m.ErofsDigest.Algorithm().FromBytes(b); d != m.ErofsDigest {
		return nil, corrupt("EROFS image", -1, "digest is %s, want %s", d, m.ErofsDigest)
	}
	return b, nil
}

// Encode returns the head blob.
func (m *Image) Encode() ([]byte, error) {
	im := imageMeta{Layers: make([]json.RawMessage, len(m.Layers)), ErofsDigest: m.ErofsDigest, ErofsBytes: m.ErofsBytes}
	for i := range m.Layers {
		b, err := marshalExtra(m.Layers[i], m.Layers[i].extra)
		if err != nil {
			return nil, fmt.Errorf("encode head of index: %w", err)
		}
		im.Layers[i] = b
	}
	meta, err := marshalExtra(im, m.extra)
	if err != nil {
		return nil, fmt.Errorf("encode head of index: %w", err)
	}
	var spans []byte
	for i := range m.Layers {
		spans = encodeSpans(spans, m.Layers[i].Spans)
	}
	sections := append([]section{packed(sectionMeta, meta), packed(sectionSpans, spans), m.erofs}, m.unknown...)
	blob, _ := encodeSections(kindImage, sections)
	return blob, nil
}

// DecodeImage reads a head blob. The result may alias b.
func DecodeImage(b []byte) (*Image, error) {
	sections, _, err := decodeSections(b, kindImage)
	if err != nil {
		return nil, err
	}
	meta, err := rawSection(sections, sectionMeta)
	if err != nil {
		return nil, err
	}
	var im imageMeta
	extra, err := unmarshalExtra(meta, &im)
	if err != nil {
		return nil, err
	}
	if len(im.Layers) > maxLayers {
		return nil, corrupt("meta", -1, "%d layers", len(im.Layers))
	}
	m := &Image{Layers: make([]ImageLayer, len(im.Layers)), ErofsDigest: im.ErofsDigest, ErofsBytes: im.ErofsBytes, extra: extra,
		unknown: unknown(sections, sectionMeta, sectionSpans, sectionErofs)}
	for i, raw := range im.Layers {
		if m.Layers[i].extra, err = unmarshalExtra(raw, &m.Layers[i]); err != nil {
			return nil, err
		}
	}
	if m.erofs, _, err = find(sections, sectionErofs); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	spans, err := rawSection(sections, sectionSpans)
	if err != nil {
		return nil, err
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		n := l.SpanCount()
		if n > int64(len(spans))/spanRecordBytes {
			return nil, corrupt("span table", -1, "layer %s has %d spans in %d bytes", l.Blob, n, len(spans))
		}
		if l.Spans, err = decodeSpans(spans, n, l.BlobBytes, l.BytesWindows); err != nil {
			return nil, err
		}
		spans = spans[n*spanRecordBytes:]
	}
	if len(spans) != 0 {
		return nil, corrupt("span table", -1, "%d bytes after the last span", len(spans))
	}
	return m, nil
}

func (m *Image) check() error {
	if err := m.ErofsDigest.Validate(); err != nil {
		return corrupt("meta", -1, "EROFS digest %q: %v", m.ErofsDigest, err)
	}
	if m.ErofsBytes != m.erofs.rawBytes {
		return corrupt("meta", -1, "EROFS image of %d bytes in a section of %d", m.ErofsBytes, m.erofs.rawBytes)
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		if err := l.check(); err != nil {
			return err
		}
		if err := l.Index.Validate(); err != nil {
			return corrupt("meta", -1, "index digest %q of layer %s: %v", l.Index, l.Blob, err)
		}
		if l.OffsetWindows < 0 || l.BytesWindows < 0 || l.OffsetWindows > l.IndexBytes || l.BytesWindows > l.IndexBytes-l.OffsetWindows {
			return corrupt("meta", -1, "windows of layer %s at %d+%d of %d bytes", l.Blob, l.OffsetWindows, l.BytesWindows, l.IndexBytes)
		}
	}
	return nil
}
