package startup

import (
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/index"
)

// ReadHeader reads the header of a bundle from the begin of its blob, and
// verifies its digest.
func ReadHeader(r io.Reader, d index.BundleDescriptor) (h *Header, raw []byte, err error) {
	if d.HeaderBytes < fixedBytes || d.HeaderBytes > MaxHeaderBytes || d.HeaderBytes > d.Bytes {
		return nil, nil, corrupt("header of %d bytes in a blob of %d", d.HeaderBytes, d.Bytes)
	}
	raw = make([]byte, d.HeaderBytes)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, nil, fmt.Errorf("read start-up bundle: %w", err)
	}
	h, err = VerifyHeader(raw, d)
	return h, raw, err
}

// VerifyHeader decodes a header whose bytes are here already.
func VerifyHeader(raw []byte, d index.BundleDescriptor) (*Header, error) {
	if got := d.HeaderDigest.Algorithm().FromBytes(raw); got != d.HeaderDigest {
		return nil, corrupt("its header has the digest %s, the index says %s", got, d.HeaderDigest)
	}
	return DecodeHeader(raw, d.Bytes)
}

// Apply reads the frames from r, which is behind the header, unpacks them on workers cores and calls
// put for each, from several goroutines and nearly in order. raw is the pieces of
// the frame one after another, and valid only during the call. A frame that want
// does not want is read past. Until alone is closed, if it is not nil, one core is left to others.
// The first error ends it, and is returned.
func (h *Header) Apply(ctx context.Context, r io.Reader, workers int, alone <-chan struct{}, want func(frame int) bool, put func(frame int, raw []byte) error) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFrameRaw),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return fmt.Errorf("unpack start-up bundle: %w", err)
	}
	defer dec.Close()
	g, ctx := errgroup.WithContext(ctx)
	cores := make(chan struct{}, workers)
	for range workers {
		cores <- struct{}{}
	}
	over := make(chan struct{})
	defer close(over)
	if workers > 1 && alone != nil {
		<-cores
		go func() {
			select {
			case <-alone:
				cores <- struct{}{}
			case <-over:
			}
		}()
	}
	ended := func(err error) error {
		if werr := g.Wait(); werr != nil {
			return werr // what ended the context, or came first
		}
		return err
	}
	spare := make(chan *frameBuffers, workers+1) // one more than cores, so that reading goes on meanwhile
	for range cap(spare) {
		spare <- new(frameBuffers)
	}
	for i := range h.Frames {
		f := &h.Frames[i]
		if !want(i) {
			if _, err := io.CopyN(io.Discard, r, f.StoredBytes); err != nil {
				return ended(fmt.Errorf("read start-up bundle: %w", err))
			}
			continue
		}
		var b *frameBuffers
		select {
		case b = <-spare:
		case <-ctx.Done():
			return ended(context.Cause(ctx))
		}
		if ctx.Err() != nil {
			return ended(context.Cause(ctx))
		}
		b.grow(f)
		if _, err := io.ReadFull(r, b.stored); err != nil {
			return ended(fmt.Errorf("read start-up bundle: %w", err))
		}
		g.Go(func() error {
			defer func() { spare <- b }()
			<-cores // they come back
			defer func() { cores <- struct{}{} }()
			raw, err := dec.DecodeAll(b.stored, b.raw[:0:f.RawBytes])
			if err != nil || int64(len(raw)) != f.RawBytes {
				return corrupt("frame %d unpacks to %d bytes, want %d (%v)", i, len(raw), f.RawBytes, err)
			}
			return put(i, raw)
		})
	}
	return g.Wait()
}

// frameBuffers hold one frame on its way.
type frameBuffers struct{ stored, raw []byte }

func (b *frameBuffers) grow(f *Frame) {
	if int64(cap(b.stored)) < f.StoredBytes {
		b.stored = make([]byte, max(f.StoredBytes, frameMax+slackBytes))
	}
	if int64(cap(b.raw)) < f.RawBytes {
		b.raw = make([]byte, max(f.RawBytes, frameMax))
	}
	b.stored = b.stored[:f.StoredBytes]
}
