package index

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/thaw-project/thaw/internal/erofs"
	"github.com/thaw-project/thaw/internal/inflate"
	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/spanhash"
)

// BuildInput says what layer a stream holds.
type BuildInput struct {
	Blob      digest.Digest
	BlobBytes int64
	DiffID    digest.Digest // that the image's config promises
	MaxBytes  int64         // refuse a layer that unpacks to more; 0: EROFS' limit
	// ProveBytes is inflate.ScanOptions.ProveBytes: 0 proves all of each span.
	ProveBytes int64
	// Span is called with each span's bytes, in order, from one goroutine; may
	// be nil. The bytes are valid only during the call.
	Span func(i int, data []byte) error
}

// DiffIDError reports a layer that does not unpack to what its image's config
// promises.
type DiffIDError struct {
	Blob       digest.Digest
	Want, Have digest.Digest
}

func (e *DiffIDError) Error() string {
	return fmt.Sprintf("layer %s unpacks to %s, the image's config promises %s", e.Blob, e.Have, e.Want)
}

// MaxBuildBytes bounds the entries of all layers of an image that an index is made
// of, as EntriesBytes counts them; one layer may have half of it: a million
// and a half of files with names of 50 bytes. It is well within what a reader of the
// index takes, and a start that makes one needs four times as much of memory.
const MaxBuildBytes = maxEntriesBytes / 2

// EntriesBytes is what the layer's entries count for against MaxBuildBytes.
func (l *Layer) EntriesBytes() int64 {
	n := int64(0)
	for i := range l.Entries {
		e := &l.Entries[i]
		n += int64(entryBytes + len(e.Path) + len(e.Link) + entrySegmentBytes*len(e.Segments))
		for _, x := range e.Xattrs {
			n += int64(len(x.Name) + len(x.Value))
		}
	}
	return n
}

// buildDepth is how many spans lie between one step and the next.
const buildDepth = 3

// BuildLayer makes the index of a layer in one pass over its compressed bytes.
// It does not check that the bytes hash to Blob: the reader is to do so (see
// registry.Stream). It does check the DiffID.
func BuildLayer(ctx context.Context, r io.Reader, in BuildInput) (*Layer, error) {
	if in.MaxBytes == 0 || in.MaxBytes > maxTarBytes {
		in.MaxBytes = maxTarBytes
	}
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(16)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read layer %s: %w", in.Blob, err)
	}
	b := &builder{in: in, tarHash: spanhash.New(), layer: &Layer{LayerMeta: LayerMeta{
		Blob: in.Blob, BlobBytes: in.BlobBytes, DiffID: in.DiffID, Format: inflate.Detect(head), SpanBytes: SpanBytes,
	}}}
	limits := layertar.DefaultLimits()
	limits.TotalBytes = MaxBuildBytes / 2
	b.tar = layertar.NewScanner(limits, func(e layertar.Entry) error {
		b.layer.Entries = append(b.layer.Entries, e)
		return nil
	})
	if err := b.run(ctx, br); err != nil {
		return nil, fmt.Errorf("index layer %s: %w", in.Blob, err)
	}
	sum := b.tarHash.Sum()
	if have := digest.NewDigestFromBytes(digest.SHA256, sum[:]); have != in.DiffID {
		return nil, &DiffIDError{Blob: in.Blob, Want: in.DiffID, Have: have}
	}
	b.layer.LayerMeta.Entries = int64(len(b.layer.Entries))
	return b.layer, nil
}

type builder struct {
	in      BuildInput
	layer   *Layer
	tar     *layertar.Scanner
	tarHash *spanhash.Stream
}

// decoded is a span on its way from the decoder to the hashes.
type decoded struct {
	span Span
	data []byte
	aux  []byte // window record
}

// run decodes in one goroutine, hashes and scans in another and hands on in a
// third: the largest layer of an image, at its end the only one, uses more cores than one.
func (b *builder) run(ctx context.Context, r io.Reader) error {
	// Not a sync.Pool, which every garbage collection empties.
	free := make(chan []byte, 2*buildDepth+4)
	for range cap(free) {
		free <- make([]byte, SpanBytes)
	}
	queue, taken := make(chan *decoded, buildDepth), make(chan *decoded, buildDepth)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(queue)
		opts := inflate.ScanOptions{Format: b.layer.Format, SpanBytes: SpanBytes, MaxBytes: b.in.MaxBytes,
			Prove: true, ProveBytes: b.in.ProveBytes, Buffers: free}
		result, err := inflate.Scan(ctx, r, opts, func(s *inflate.Span) error {
			d := &decoded{data: s.Data, aux: encodeWindow(s.Point), span: Span{
				OffsetCompressed: s.Point.OffsetCompressed, BytesCompressed: s.EndCompressed - s.Point.OffsetCompressed,
				Kind: s.Point.Kind, Skip: s.Point.Skip,
			}}
			select {
			case queue <- d:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		b.layer.TarBytes = result.BytesUncompressed
		return err
	})
	g.Go(func() error {
		defer close(taken)
		for d := range queue {
			if err := b.take(d); err != nil {
				return err
			}
			select {
			case taken <- d:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	g.Go(func() error {
		i := 0
		for d := range taken {
			if b.in.Span != nil {
				if err := b.in.Span(i, d.data); err != nil {
					return err
				}
			}
			free <- d.data[:SpanBytes]
			i++
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return b.tar.Close()
}

func (b *builder) take(d *decoded) error {
	l := b.layer
	d.span.Digest = b.tarHash.Next(d.data)
	if _, err := b.tar.Write(d.data); err != nil {
		return err
	}
	d.span.OffsetWindow, d.span.BytesWindow = int64(len(l.Windows)), int64(len(d.aux))
	l.Windows = append(l.Windows, d.aux...)
	l.Spans = append(l.Spans, d.span)
	return nil
}

// LayerBlob is a layer's index with its encoded form.
type LayerBlob struct {
	*Layer
	Bytes         []byte
	Digest        digest.Digest // of Bytes
	OffsetWindows int64
}

// EncodeLayer encodes a layer's index.
func EncodeLayer(l *Layer) (*LayerBlob, error) {
	b, at, err := l.Encode()
	if err != nil {
		return nil, err
	}
	return &LayerBlob{Layer: l, Bytes: b, Digest: digest.FromBytes(b), OffsetWindows: at}, nil
}

// OpenLayer decodes a layer blob and keeps its bytes, whichever version of thaw
// wrote them: they are what heads refer to. The result aliases b.
func OpenLayer(b []byte) (*LayerBlob, error) {
	l, at, err := decodeLayer(b)
	if err != nil {
		return nil, err
	}
	return &LayerBlob{Layer: l, Bytes: b, Digest: digest.FromBytes(b), OffsetWindows: at}, nil
}

// Assemble makes the head of an image's index from its layers' indexes, bottom
// first.
func Assemble(layers []*LayerBlob) (*Image, error) {
	entries, heads := make([][]layertar.Entry, len(layers)), make([]ImageLayer, len(layers))
	for i, l := range layers {
		entries[i] = l.Layer.Entries
		heads[i] = ImageLayer{LayerMeta: l.LayerMeta, Index: l.Digest, IndexBytes: int64(len(l.Bytes)),
			OffsetWindows: l.OffsetWindows, BytesWindows: int64(len(l.Windows)), Spans: l.Spans}
		heads[i].extra = nil // of the layer blob, not of the head
	}
	metadata, err := Metadata(heads, entries)
	if err != nil {
		return nil, err
	}
	return NewImage(heads, metadata), nil
}

// Metadata makes the EROFS metadata image of an image: device i+1 is layer i.
func Metadata(layers []ImageLayer, entries [][]layertar.Entry) ([]byte, error) {
	for i, l := range layers {
		if err := checkLastBlock(&l.LayerMeta, entries[i]); err != nil {
			return nil, err
		}
	}
	root, err := Merge(entries)
	if err != nil {
		return nil, err
	}
	devices := make([]erofs.Device, len(layers))
	for i, l := range layers {
		devices[i] = erofs.Device{Tag: l.DiffID.Encoded(), SizeBytes: l.TarBytes}
	}
	b, err := erofs.Write(root, devices)
	if err != nil {
		return nil, fmt.Errorf("write EROFS metadata: %w", err)
	}
	return b, nil
}

// checkLastBlock refuses a file whose data lies in a last block of the tar that
// is not whole: EROFS reads whole blocks of a device.
func checkLastBlock(l *LayerMeta, entries []layertar.Entry) error {
	whole := l.TarBytes &^ (layertar.BlockBytes - 1)
	if whole == l.TarBytes {
		return nil
	}
	for i := range entries {
		e := &entries[i]
		end := e.OffsetTar + e.SizeBytes
		if e.Segments != nil {
			last := e.Segments[len(e.Segments)-1]
			end = last.OffsetTar + last.Length
		}
		if e.Type == layertar.TypeReg && end > whole {
			return fmt.Errorf("layer %s: file %q: the tar of %d bytes ends without the padding of its last block, which cannot be mounted",
				l.Blob, e.Path, l.TarBytes)
		}
	}
	return nil
}
