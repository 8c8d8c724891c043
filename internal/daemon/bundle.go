package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/startup"
	"github.com/thaw-project/thaw/internal/trace"
	"github.com/thaw-project/thaw/internal/tracestore"
)

// bundle is a start-up bundle on its way into the layers of an image: one for
// all mounts by the same index, for as long as there is one.
type bundle struct {
	desc    index.BundleDescriptor
	counter registry.Counter
	ctx     context.Context
	cancel  context.CancelFunc
	open    func(ctx context.Context) (io.ReadCloser, error)
	unpack  func() (*startup.Unpacker, error) // makes it once; only for who applies the bundle
	headed  chan struct{}                     // closed when its header is here
	header  *startup.Header
	done    chan struct{} // closed when nothing more comes by it; also when it never started

	// Guarded by bundles.mu.
	users   int
	started bool

	mu    sync.Mutex // guards what follows
	body  io.ReadCloser
	state string
	lie   error
}

// bundles are those in use, by their digests.
type bundles struct {
	mu  sync.Mutex
	all map[digest.Digest]*bundle
}

// joinBundle returns the bundle for one more user; its bytes are asked for at
// once where early says so and nobody has done that yet.
func (d *Daemon) joinBundle(img *image, desc index.BundleDescriptor, early bool) *bundle {
	d.bundles.mu.Lock()
	defer d.bundles.mu.Unlock()
	b := d.bundles.all[desc.Digest]
	if b == nil || b.desc != desc {
		b = &bundle{desc: desc, headed: make(chan struct{}), done: make(chan struct{})}
		b.ctx, b.cancel = context.WithCancel(d.ctx)
		unpack := sync.OnceValues(func() (*startup.Unpacker, error) { return startup.NewUnpacker(runtime.NumCPU(), desc.Bytes) })
		b.unpack = unpack
		b.open = func(ctx context.Context) (io.ReadCloser, error) { return d.readBundle(ctx, img, b) }
		if d.bundles.all == nil {
			d.bundles.all = map[digest.Digest]*bundle{}
		}
		if d.bundles.all[desc.Digest] == nil {
			d.bundles.all[desc.Digest] = b
		}
		if early {
			b.body, _ = b.open(b.ctx) // an error comes again when it is read
			d.wg.Go(func() { _, _ = unpack() })
		}
	}
	b.users++
	return b
}

// readBundle reads the blob, from this node or else from beside the image.
func (d *Daemon) readBundle(ctx context.Context, img *image, b *bundle) (io.ReadCloser, error) {
	if f, err := d.indexes.OpenBundle(img.digest, b.desc.Digest); err == nil {
		return f, nil
	}
	return registry.Stream(registry.WithCounter(registry.WithCounter(ctx, &d.counts.bundles), &b.counter), img.repo, b.desc.Descriptor(),
		registry.StreamOptions{Unverified: true}), nil // each piece has its digest
}

// leaveBundle ends one use of a bundle. After the last one nothing of it goes
// into any layer any more.
func (d *Daemon) leaveBundle(b *bundle) {
	if b == nil {
		return
	}
	d.bundles.mu.Lock()
	b.users--
	last, started := b.users == 0, b.started
	if last && d.bundles.all[b.desc.Digest] == b {
		delete(d.bundles.all, b.desc.Digest)
	}
	d.bundles.mu.Unlock()
	if !last {
		return
	}
	b.cancel()
	if started {
		<-b.done
	} else if b.body != nil {
		b.body.Close()
	}
}

// maybeNeeded reports whether a start of the image may need its bundle: some
// layer has never been on this node, as far as is known without looking.
func (d *Daemon) maybeNeeded(img *image) bool {
	for _, blob := range img.blobs {
		if !d.store.Known(blob) {
			return true
		}
	}
	return false
}

// startBundle has the bundle of the mount's index brought into its layers, if
// that is of use and not done already.
func (d *Daemon) startBundle(m *mounted) {
	img := m.img
	m.bundle, img.run = img.run, nil
	needed := slices.ContainsFunc(m.layers, func(l *layer) bool { return !l.store.Complete() })
	if img.bundle == nil || !needed || m.Mode == api.ModeEager {
		if img.bundle == nil && needed && m.Mode != api.ModeEager {
			layers := slices.Clone(m.layers)
			d.wg.Go(func() { d.prefetch(img, layers) })
		}
		d.leaveBundle(m.bundle)
		m.bundle = nil
		return
	}
	if m.bundle == nil {
		m.bundle = d.joinBundle(img, *img.bundle, false)
	}
	b := m.bundle
	d.bundles.mu.Lock()
	start := !b.started
	b.started = true
	d.bundles.mu.Unlock()
	if !start {
		return
	}
	layers := map[digest.Digest]*layer{}
	for _, l := range m.layers {
		layers[l.blob] = l
	}
	b.set(api.BundleStreaming)
	d.wg.Go(func() {
		defer close(b.done)
		begun := time.Now()
		ready, near, err := d.applyBundle(b, m, layers)
		b.unpack = nil // and its buffers
		switch {
		case b.ctx.Err() != nil:
			return
		case err != nil:
			b.set("ignored: " + err.Error())
			d.log.Warn("start-up bundle is ignored", "image", img.ref, "bundle", b.desc.Digest, "err", err)
		default:
			b.set(api.BundleApplied)
			d.sched.Neighbours(near)
			d.log.Info("start-up bundle is applied", "image", img.ref, "bundle", b.desc.Digest, "bytes", b.counter.BytesRead.Load(),
				"took", time.Since(begun).Round(time.Millisecond).String(), "recorded_ready", ready.String())
		}
	})
}

// applyBundle puts a bundle's pieces into the layers, and returns where they lie. What arrives damaged is
// asked for once more, past mirrors.
func (d *Daemon) applyBundle(b *bundle, m *mounted, layers map[digest.Digest]*layer) (ready time.Duration, near []hydrate.Want, err error) {
	for try := range 2 {
		ctx := b.ctx
		if try > 0 {
			ctx = registry.FromOrigin(ctx)
		}
		ready, near, err = d.streamBundle(ctx, b, m, layers)
		var corrupt *startup.CorruptError
		var piece *layerstore.PieceError
		_, lie := b.status()
		if !errors.As(err, &corrupt) && !errors.As(err, &piece) || lie != nil || b.ctx.Err() != nil {
			return ready, near, err
		}
		d.log.Warn("start-up bundle arrived damaged", "image", m.img.ref, "bundle", b.desc.Digest, "err", err)
	}
	return ready, near, err
}

// streamBundle is one try of applyBundle.
func (d *Daemon) streamBundle(ctx context.Context, b *bundle, m *mounted, layers map[digest.Digest]*layer) (time.Duration, []hydrate.Want, error) {
	s := &bundleStream{ctx: ctx, b: b, body: b.body}
	b.body = nil
	defer s.close()
	h, err := d.bundleHeader(m.img, b, s)
	if err != nil {
		return 0, nil, err
	}
	if err := h.Check(m.img.head); err != nil {
		return 0, nil, err
	}
	if b.header == nil { // this is the only goroutine that sets it
		b.header = h
		close(b.headed)
	}
	ends := make([]int64, len(h.Frames))
	for i, f := range h.Frames {
		ends[i] = f.Offset + f.StoredBytes - b.desc.HeaderBytes
	}
	s.feed = d.sched.NewFeed(ends)
	then := time.Now()
	defer func() { s.feed.Close(then) }()
	places, err := d.placePieces(h, b, m, layers, s.feed)
	if err != nil {
		return 0, nil, err
	}
	want := func(frame int) bool { return wanted(&h.Frames[frame], places) }
	need := int64(0)
	for i := range h.Frames {
		if want(i) {
			need += h.Frames[i].RawBytes
		}
	}
	if need > 0 {
		// As for all that nobody waits for: the last of the disk is the readers'.
		if err = d.makeRoom(ctx, need); err == nil {
			err = s.frames(b.desc.HeaderBytes)
		}
		var u *startup.Unpacker
		if err == nil {
			u, err = b.unpack()
		}
		if err == nil {
			err = h.Apply(ctx, s, u, m.attached, want, func(frame int, raw []byte) error { return putFrame(h, frame, raw, places, s.feed) })
		}
	}
	if err == nil && (m.Writable || m.Snapshot) {
		// A container that does what the recorded one did is not ready yet: it gets
		// the CPU, of which the background else would take its half.
		then = m.Created.Add(h.Ready + h.Ready/2)
	}
	var near []hydrate.Want
	for i := range places {
		if p := &places[i]; p.layer != nil {
			near = append(near, hydrate.Want{Layer: p.layer.hydrate, Offset: h.Pieces[i].Offset, Length: h.Pieces[i].Length})
		}
	}
	return h.Ready, near, err
}

// wanted reports whether something of a frame is not here.
func wanted(f *startup.Frame, places []place) bool {
	for i := f.First; i < f.End; i++ {
		if p := &places[i]; p.layer != nil && !p.layer.store.HavePiece(p.number) {
			return true
		}
	}
	return false
}

// putFrame puts the pieces of a frame where they belong.
func putFrame(h *startup.Header, frame int, raw []byte, places []place, feed *hydrate.Feed) error {
	f := &h.Frames[frame]
	for i := f.First; i < f.End; i++ {
		n := h.Pieces[i].Length
		if p := &places[i]; p.layer != nil {
			if err := p.layer.store.PutPiece(p.number, raw[:n]); err != nil {
				return err
			}
		}
		raw = raw[n:]
	}
	feed.Applied()
	return nil
}

// bundleStream reads a bundle's blob, which is opened when it is first read.
type bundleStream struct {
	ctx  context.Context // of the try that it is a part of
	b    *bundle
	body io.ReadCloser
	read int64
	feed *hydrate.Feed // nil: the header is being read
}

func (s *bundleStream) Read(b []byte) (n int, err error) {
	if s.body == nil {
		if s.body, err = s.b.open(s.ctx); err != nil {
			return 0, err
		}
	}
	n, err = s.body.Read(b)
	s.read += int64(n)
	if n > 0 && s.feed != nil {
		s.feed.Received(int64(n))
	}
	return n, err
}

// frames goes to the first frame, if the header was not read from the stream.
func (s *bundleStream) frames(at int64) error {
	feed := s.feed
	s.feed = nil // what is read past is not a part of what it expects
	defer func() { s.feed = feed }()
	_, err := io.CopyN(io.Discard, s, at-s.read)
	return err
}

func (s *bundleStream) close() {
	if s.body != nil {
		s.body.Close()
	}
}

// awaitHeader returns the bundle's header, or nil if there is none, or not soon.
func (b *bundle) awaitHeader() *startup.Header {
	if b == nil {
		return nil
	}
	late := time.NewTimer(headerPatience)
	defer late.Stop()
	select {
	case <-b.headed:
	case <-b.done: // by another mount, its header perhaps as well
	case <-late.C:
	}
	select {
	case <-b.headed:
		return b.header
	default:
		return nil
	}
}

// bundleHeader returns the header of a bundle: one that an earlier daemon kept,
// so that what is on disk can be told without the registry, or that of the stream.
func (d *Daemon) bundleHeader(img *image, b *bundle, s *bundleStream) (*startup.Header, error) {
	if f, err := d.indexes.OpenBundle(img.digest, b.desc.HeaderDigest); err == nil {
		defer f.Close()
		if h, _, err := startup.ReadHeader(f, b.desc); err == nil {
			return h, nil
		}
	}
	h, raw, err := startup.ReadHeader(s, b.desc)
	if err != nil {
		return nil, err
	}
	d.wg.Go(func() {
		if err := d.indexes.PutBundle(img.digest, b.desc.HeaderDigest, raw); err != nil {
			d.log.Warn("keep header of start-up bundle", "image", img.ref, "err", err)
		}
	})
	return h, nil
}

// place is where a piece of a bundle goes.
type place struct {
	layer  *layer // nil: nowhere
	number int    // in its layer's table
}

// placePieces gives the layers their tables of pieces.
func (d *Daemon) placePieces(h *startup.Header, b *bundle, m *mounted, layers map[digest.Digest]*layer, feed *hydrate.Feed) ([]place, error) {
	places := make([]place, len(h.Pieces))
	frameOf := h.PieceFrames()
	for i, hl := range h.Layers {
		l := layers[hl.Blob]
		if l == nil || l.store.Complete() {
			continue
		}
		numbers := h.LayerPieces(i)
		table, frames := make([]layerstore.Piece, len(numbers)), make([]int, len(numbers))
		for n, at := range numbers {
			p := &h.Pieces[at]
			table[n] = layerstore.Piece{Offset: p.Offset, Length: p.Length, Digest: p.Digest}
			frames[n] = frameOf[at]
		}
		ok, err := d.setPieces(l, m.img.index, table, func(lie *layerstore.PieceError) { d.bundleLied(b, m.img, layers, lie) })
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if _, lie := b.status(); lie != nil { // told after its pieces were forgotten, or they are now
			l.store.DropPieces()
			return nil, lie
		}
		for n, at := range numbers {
			places[at] = place{l, n}
		}
		l.hydrate.Feed(feed, frames)
		for n := range numbers {
			if _, err := l.store.RecheckPiece(n); err != nil {
				return nil, err
			}
		}
	}
	return places, nil
}

// setPieces gives a layer its pieces, unless images with other indexes use it as
// well: what one index says is not believed for the other's readers.
func (d *Daemon) setPieces(l *layer, idx digest.Digest, table []layerstore.Piece, lied func(*layerstore.PieceError)) (bool, error) {
	d.layers.mu.Lock()
	defer d.layers.mu.Unlock()
	if l.mixed || l.index != idx {
		return false, nil
	}
	return true, l.store.SetPieces(table, lied)
}

// bundleLied is told that the verified bytes of a layer are not those that were
// believed by the bundle. It is called with locks of the layer store held.
func (d *Daemon) bundleLied(b *bundle, img *image, layers map[digest.Digest]*layer, lie *layerstore.PieceError) {
	err := fmt.Errorf("start-up bundle %s lied: %w", b.desc.Digest, lie)
	b.mu.Lock()
	b.lie = err
	b.mu.Unlock()
	for _, l := range layers {
		l.store.DropPieces()
	}
	d.wg.Go(func() {
		d.log.Error("index is quarantined", "image", img.ref, "index", img.index, "err", err)
		if err := d.quarantine(img, err); err != nil {
			d.log.Error("quarantine index", "image", img.ref, "index", img.index, "err", err)
		}
	})
}

func (b *bundle) set(state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = state
}

// status says how far the bundle is, and what was wrong with it.
func (b *bundle) status() (state string, lie error) {
	if b == nil {
		return "", nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.lie
}

// manifestBlobs are the layers that an image's manifest names.
func manifestBlobs(manifest []byte) []digest.Digest {
	m, _, err := oci.ParseManifest(manifest)
	if err != nil {
		return nil
	}
	var blobs []digest.Digest
	for _, l := range m.Layers {
		blobs = append(blobs, l.Digest)
	}
	return blobs
}

// prefetch has the background bring first what earlier starts of the image on this
// node read, or those of another image of its repository. A trace is all there is
// of an image whose index has no bundle.
func (d *Daemon) prefetch(img *image, layers []*layer) {
	t, err := d.traceFor(img)
	if err != nil {
		d.log.Warn("traces cannot be read", "image", img.ref, "err", err)
	}
	if t == nil {
		return
	}
	byBlob := map[digest.Digest]*layer{}
	for _, l := range layers {
		byBlob[l.blob] = l
	}
	var wants []hydrate.Want
	for _, a := range t.Accesses {
		if l := byBlob[a.Layer]; l != nil {
			wants = append(wants, hydrate.Want{Layer: l.hydrate, Offset: a.Offset, Length: a.Length})
		}
	}
	d.sched.Prefetch(wants)
	d.log.Info("bringing first what an earlier start read", "image", img.ref, "accesses", len(wants))
}

// traceFor returns what starts of an image read, from this node's traces; nil
// when nothing is known.
func (d *Daemon) traceFor(img *image) (*trace.Trace, error) {
	_, all, err := d.allTraces(func(k tracestore.Key, t *trace.Trace) bool {
		return k.Image == img.digest || oci.SameRepository(t.Reference, img.ref)
	})
	if err != nil || len(all) == 0 {
		return nil, err
	}
	for _, t := range all { // the newest first
		if t.Image == img.digest {
			return t, nil
		}
	}
	files, err := img.head.Files()
	if err != nil {
		return nil, err
	}
	return trace.Map(all[0], img.digest, d.filesOf(all[0].Image), files), nil
}
