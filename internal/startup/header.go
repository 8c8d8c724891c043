package startup

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
)

// The header, little-endian:
//
//	offset size
//	0      8    magic "thawbndl"
//	8      4    version, 1
//	12     4    number of layers
//	16     4    number of frames
//	20     4    number of pieces
//	24     8    how long the recorded start took, in ns; 0: not known
//	32     40*l layers: sha256 of the blob, bytes of the tar
//	       12*f frames: stored bytes, bytes unpacked, number of pieces
//	       48*p pieces: layer, length, offset in the tar, sha256
//
// The frames follow the header, the pieces are in the order of the frames.
const (
	magic       = "thawbndl"
	version     = 1
	fixedBytes  = 32
	layerBytes  = 40
	frameBytes  = 12
	pieceBytes  = 48
	maxLayers   = 1000
	maxFrames   = 1 << 16
	maxPieces   = 1 << 18
	maxFrameRaw = 2 << 20
	// slackBytes is how much larger than its content a frame may be.
	slackBytes = 1 << 10
)

// MaxHeaderBytes is the size of the largest header.
const MaxHeaderBytes = fixedBytes + maxLayers*layerBytes + maxFrames*frameBytes + maxPieces*pieceBytes

// Piece is a range of a layer.
type Piece struct {
	Layer          int // of Header.Layers
	Offset, Length int64
	Digest         [32]byte // sha256
}

// Frame is a part of a bundle that is unpacked by itself.
type Frame struct {
	Offset      int64 // in the blob
	StoredBytes int64
	RawBytes    int64
	First, End  int // its pieces
}

// Layer is a layer that a bundle has pieces of.
type Layer struct {
	Blob     digest.Digest
	TarBytes int64
}

// Header is the header of a bundle.
type Header struct {
	Layers []Layer
	Frames []Frame
	Pieces []Piece
	Ready  time.Duration // how long the recorded start took; 0: not known
	Bytes  int64         // of the whole blob
}

// CorruptError reports a bundle that does not follow the format.
type CorruptError struct{ Reason string }

func (e *CorruptError) Error() string { return "corrupt start-up bundle: " + e.Reason }

func corrupt(format string, args ...any) error { return &CorruptError{fmt.Sprintf(format, args...)} }

// headerBytes is the size of the header.
func (h *Header) headerBytes() int64 {
	return fixedBytes + int64(len(h.Layers))*layerBytes + int64(len(h.Frames))*frameBytes + int64(len(h.Pieces))*pieceBytes
}

// RawBytes is how much of the layers the pieces are.
func (h *Header) RawBytes() (n int64) {
	for i := range h.Frames {
		n += h.Frames[i].RawBytes
	}
	return n
}

func (h *Header) encode() ([]byte, error) {
	b := make([]byte, 0, h.headerBytes())
	le := binary.LittleEndian
	b = append(b, magic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, uint32(len(h.Layers)))
	b = le.AppendUint32(b, uint32(len(h.Frames)))
	b = le.AppendUint32(b, uint32(len(h.Pieces)))
	b = le.AppendUint64(b, uint64(h.Ready))
	for _, l := range h.Layers {
		sum, err := rawDigest(l.Blob)
		if err != nil {
			return nil, err
		}
		b = le.AppendUint64(append(b, sum...), uint64(l.TarBytes))
	}
	for _, f := range h.Frames {
		b = le.AppendUint32(b, uint32(f.StoredBytes))
		b = le.AppendUint32(b, uint32(f.RawBytes))
		b = le.AppendUint32(b, uint32(f.End-f.First))
	}
	for i := range h.Pieces {
		p := &h.Pieces[i]
		b = le.AppendUint32(b, uint32(p.Layer))
		b = le.AppendUint32(b, uint32(p.Length))
		b = le.AppendUint64(b, uint64(p.Offset))
		b = append(b, p.Digest[:]...)
	}
	return b, nil
}

func rawDigest(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("encode start-up bundle: digest %q is not a sha256", d)
	}
	return hex.DecodeString(d.Encoded())
}

// DecodeHeader reads a header of a bundle of blobBytes bytes. Nothing in it is
// believed but that it is well-formed: its caller has verified its digest.
func DecodeHeader(b []byte, blobBytes int64) (*Header, error) {
	if len(b) < fixedBytes || string(b[:8]) != magic {
		return nil, corrupt("no header")
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != version {
		return nil, corrupt("version %d is not known", v)
	}
	layers, frames, pieces := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:])), int64(le.Uint32(b[20:]))
	if layers > maxLayers || frames > maxFrames || pieces > maxPieces {
		return nil, corrupt("%d layers, %d frames, %d pieces", layers, frames, pieces)
	}
	if want := fixedBytes + layers*layerBytes + frames*frameBytes + pieces*pieceBytes; int64(len(b)) != want {
		return nil, corrupt("header of %d bytes, want %d", len(b), want)
	}
	h := &Header{Ready: time.Duration(min(le.Uint64(b[24:]), math.MaxInt64)), Bytes: blobBytes,
		Layers: make([]Layer, layers), Frames: make([]Frame, frames), Pieces: make([]Piece, pieces)}
	at := b[fixedBytes:]
	for i := range h.Layers {
		h.Layers[i] = Layer{digest.NewDigestFromBytes(digest.SHA256, at[:32]), int64(le.Uint64(at[32:]))}
		if h.Layers[i].TarBytes < 0 {
			return nil, corrupt("layer %d has %d bytes", i, h.Layers[i].TarBytes)
		}
		at = at[layerBytes:]
	}
	framesAt := at
	at = at[frames*frameBytes:]
	for i := range h.Pieces {
		h.Pieces[i] = Piece{Layer: int(le.Uint32(at)), Length: int64(le.Uint32(at[4:])), Offset: int64(le.Uint64(at[8:])), Digest: [32]byte(at[16:48])}
		at = at[pieceBytes:]
	}
	if err := h.decodeFrames(framesAt, int64(len(b))); err != nil {
		return nil, err
	}
	return h, h.check()
}

// decodeFrames reads the frame table; the frames begin at byte at of the blob.
func (h *Header) decodeFrames(b []byte, at int64) error {
	piece := 0
	for i := range h.Frames {
		le := binary.LittleEndian
		stored, raw, n := int64(le.Uint32(b)), int64(le.Uint32(b[4:])), int64(le.Uint32(b[8:]))
		b = b[frameBytes:]
		if raw == 0 || raw > maxFrameRaw || stored == 0 || stored > raw+slackBytes || n > int64(len(h.Pieces)-piece) {
			return corrupt("frame %d: %d bytes in %d, %d pieces", i, raw, stored, n)
		}
		f := Frame{Offset: at, StoredBytes: stored, RawBytes: raw, First: piece, End: piece + int(n)}
		for _, p := range h.Pieces[f.First:f.End] {
			raw -= p.Length
		}
		if raw != 0 {
			return corrupt("frame %d: its pieces do not make up its bytes", i)
		}
		h.Frames[i], piece, at = f, f.End, at+stored
	}
	if piece != len(h.Pieces) || at != h.Bytes {
		return corrupt("frames end at piece %d of %d, byte %d of %d", piece, len(h.Pieces), at, h.Bytes)
	}
	return nil
}

// check makes sure that each byte of a layer is in one piece at most.
func (h *Header) check() error {
	seen := map[digest.Digest]bool{}
	for _, l := range h.Layers {
		if seen[l.Blob] {
			return corrupt("layer %s stands twice", l.Blob)
		}
		seen[l.Blob] = true
	}
	for i := range h.Pieces {
		p := &h.Pieces[i]
		if p.Layer < 0 || p.Layer >= len(h.Layers) {
			return corrupt("piece %d is of layer %d of %d", i, p.Layer, len(h.Layers))
		}
		tar := h.Layers[p.Layer].TarBytes
		if p.Length <= 0 || p.Offset < 0 || p.Offset > tar || p.Length > tar-p.Offset || p.Offset/index.SpanBytes != (p.Offset+p.Length-1)/index.SpanBytes {
			return corrupt("piece %d: %d bytes at %d of %d", i, p.Length, p.Offset, tar)
		}
	}
	for l := range h.Layers {
		end := int64(0)
		for _, i := range h.LayerPieces(l) {
			if p := &h.Pieces[i]; p.Offset < end {
				return corrupt("pieces overlap at %d of layer %s", p.Offset, h.Layers[l].Blob)
			}
			end = h.Pieces[i].Offset + h.Pieces[i].Length
		}
	}
	return nil
}

// LayerPieces returns the pieces of a layer of the header, by their offsets.
func (h *Header) LayerPieces(layer int) []int {
	var list []int
	for i := range h.Pieces {
		if h.Pieces[i].Layer == layer {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b int) int { return cmp.Compare(h.Pieces[a].Offset, h.Pieces[b].Offset) })
	return list
}

// PieceFrames returns the frame of each piece.
func (h *Header) PieceFrames() []int {
	frames := make([]int, len(h.Pieces))
	for i, f := range h.Frames {
		for p := f.First; p < f.End; p++ {
			frames[p] = i
		}
	}
	return frames
}

// Check compares the bundle's layers with those of an image's index.
func (h *Header) Check(img *index.Image) error {
	tars := map[digest.Digest]int64{}
	for i := range img.Layers {
		tars[img.Layers[i].Blob] = img.Layers[i].TarBytes
	}
	for _, l := range h.Layers {
		if n, ok := tars[l.Blob]; !ok || n != l.TarBytes {
			return corrupt("it is about layer %s of %d bytes, which the image does not have", l.Blob, l.TarBytes)
		}
	}
	return nil
}
