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

// maxReady bounds what bundles that do not come hold on a machine of many cores.
const maxReady = 8

// Unpacker unpacks the frames of one bundle after another.
type Unpacker struct {
	dec     *zstd.Decoder
	workers int
	spare   chan *frameBuffers // one more than workers, so that reading goes on meanwhile
}

// NewUnpacker makes what unpacks a bundle on workers cores. Some of its buffers, as
// a bundle of storedBytes needs them, are memory that the kernel has given already:
// made while the bundle is waited for, they cost nothing when it comes.
func NewUnpacker(workers int, storedBytes int64) (*Unpacker, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFrameRaw),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("unpack start-up bundle: %w", err)
	}
	u := &Unpacker{dec: dec, workers: workers, spare: make(chan *frameBuffers, workers+1)}
	const mostly = frameMax / 2 // is what a frame is stored in
	for i := range cap(u.spare) {
		b := new(frameBuffers)
		if i < maxReady && int64(i)*mostly < storedBytes { // else it is made when it is needed
			*b = frameBuffers{make([]byte, frameMax+slackBytes), make([]byte, frameMax)}
			clear(b.stored[:mostly])
			clear(b.raw)
		}
		u.spare <- b
	}
	return u, nil
}

// Apply reads the frames from r, which is behind the header, unpacks them with u,
// which nobody else uses meanwhile, and calls put for each, from several goroutines
// and nearly in order. raw is the pieces of the frame one after another, and valid
// only during the call. A frame that want does not want is read past. Until alone
// is closed, if it is not nil, one core is left to others. The first error ends it,
// and is returned; u can be used again.
func (h *Header) Apply(ctx context.Context, r io.Reader, u *Unpacker, alone <-chan struct{}, want func(frame int) bool, put func(frame int, raw []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	cores := make(chan struct{}, u.workers)
	for range u.workers {
		cores <- struct{}{}
	}
	over := make(chan struct{})
	defer close(over)
	if u.workers > 1 && alone != nil {
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
		case b = <-u.spare:
		case <-ctx.Done():
			return ended(context.Cause(ctx))
		}
		b.grow(f)
		err := context.Cause(ctx)
		if err == nil {
			if _, err = io.ReadFull(r, b.stored); err != nil {
				err = fmt.Errorf("read start-up bundle: %w", err)
			}
		}
		if err != nil {
			u.spare <- b
			return ended(err)
		}
		g.Go(func() error {
			defer func() { u.spare <- b }()
			<-cores // they come back
			defer func() { cores <- struct{}{} }()
			raw, err := u.dec.DecodeAll(b.stored, b.raw[:0:f.RawBytes])
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
