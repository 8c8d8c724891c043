package startup

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/trace"
)

// ReadFunc reads len(b) bytes of a layer's uncompressed tar at off. They have to
// be right: verified by the layer's index, or by its diffID.
type ReadFunc func(ctx context.Context, layer digest.Digest, off int64, b []byte) error

// Build makes the bundle of an image from a trace of it. What of the trace is
// about other layers is left out; nothing left is an error.
func Build(ctx context.Context, t *trace.Trace, img *index.Image, read ReadFunc) (*index.Bundle, error) {
	h := &Header{Ready: t.Ready}
	layers := map[digest.Digest]int64{}
	for i := range img.Layers {
		layers[img.Layers[i].Blob] = img.Layers[i].TarBytes
	}
	for _, blob := range t.Layers() {
		if n, ok := layers[blob]; ok {
			h.Layers = append(h.Layers, Layer{blob, n})
		}
	}
	frames := plan(t, h.Layers)
	if len(frames) == 0 {
		return nil, fmt.Errorf("make start-up bundle: the trace of %s reads nothing of this image's layers", t.Reference)
	}
	stored := make([][]byte, len(frames))
	h.Frames = make([]Frame, len(frames))
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(frameMax), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(runtime.NumCPU()))
	if err != nil {
		return nil, fmt.Errorf("make start-up bundle: %w", err)
	}
	defer enc.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU() + 2)
	for i, pieces := range frames {
		g.Go(func() error {
			var raw []byte
			for j := range pieces {
				p := &pieces[j]
				at := len(raw)
				raw = append(raw, make([]byte, p.Length)...)
				if err := read(ctx, h.Layers[p.Layer].Blob, p.Offset, raw[at:]); err != nil {
					return fmt.Errorf("make start-up bundle: %w", err)
				}
				p.Digest = sha256.Sum256(raw[at:])
			}
			stored[i] = enc.EncodeAll(raw, nil)
			h.Frames[i].RawBytes = int64(len(raw))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return h.assemble(frames, stored)
}

// assemble puts the blob together.
func (h *Header) assemble(frames [][]Piece, stored [][]byte) (*index.Bundle, error) {
	for i, pieces := range frames {
		f := &h.Frames[i]
		f.First, f.End, f.StoredBytes = len(h.Pieces), len(h.Pieces)+len(pieces), int64(len(stored[i]))
		h.Pieces = append(h.Pieces, pieces...)
	}
	if len(h.Frames) > maxFrames || len(h.Pieces) > maxPieces {
		return nil, fmt.Errorf("make start-up bundle: %d pieces in %d frames are more than it can hold", len(h.Pieces), len(h.Frames))
	}
	blob, err := h.encode()
	if err != nil {
		return nil, err
	}
	b := &index.Bundle{}
	b.HeaderDigest, b.HeaderBytes = digest.FromBytes(blob), int64(len(blob))
	for _, s := range stored {
		blob = append(blob, s...)
	}
	b.Digest, b.Bytes = digest.FromBytes(blob), int64(len(blob))
	b.Blob = blob
	_, err = DecodeHeader(blob[:b.HeaderBytes], b.Bytes)
	return b, err
}
