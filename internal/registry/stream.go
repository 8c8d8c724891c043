package registry

import (
	"context"
	"errors"
	"hash"
	"io"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	defaultConnections = 8
	defaultChunkBytes  = 2 << 20
	minChunkBytes      = 512 << 10
	// stepUnit is what the step from one of the first chunks to the next is rounded up to.
	stepUnit = 64 << 10
	// stepBytes is how much a chunk grows by before its reader is woken.
	stepBytes = 128 << 10
	// slackChunks are buffers beyond the connections, so that no connection
	// idles while the reader works on the oldest chunk.
	slackChunks = 2
)

// StreamOptions size a [Stream]. Memory is at most ChunkBytes * (Connections + 2),
// where a ChunkBytes between 1 and 2 MiB counts as 2.
type StreamOptions struct {
	// Connections is the number of ranges in flight; 0 is 8: enough for
	// 250 MB/s from a registry that gives a connection 60.
	Connections int
	// ChunkBytes is the most that a range has; 0 is 2 MiB, which makes 20 ms to the
	// first byte cost a third of a connection's time at 60 MB/s. Only buffers of
	// ranges of more than 1 and at most 2 MiB are used again.
	ChunkBytes int
	// Unverified leaves the blob's own digest aside: the caller has digests of all
	// that it uses of it.
	Unverified bool
}

// chunkBuffers keeps buffers of defaultChunkBytes. Not a sync.Pool, which every
// garbage collection empties.
var chunkBuffers = make(chan []byte, 2*(defaultConnections+slackChunks))

// Stream reads a whole blob in order through parallel ranges. Fetching starts
// at once. The bytes are handed out as they come and verified at the end: a
// blob that hashes wrong ends with an [Error] around a [DigestError] in place of
// io.EOF, so nothing read may be believed before io.EOF. From a server without
// ranges it falls back to one request. Close stops it and waits for its
// goroutines; the context ends it as well.
func Stream(ctx context.Context, repo Repository, desc v1.Descriptor, opts StreamOptions) io.ReadCloser {
	s := &stream{ctx: ctx, repo: repo, desc: desc, connections: opts.Connections, chunkBytes: int64(opts.ChunkBytes)}
	s.cond.L = &s.mu
	if err := checkRange(desc, 0, desc.Size); err != nil {
		s.err = &Error{Op: "fetch blob", Reference: desc.Digest.String(), Err: err}
		return s
	}
	if !opts.Unverified {
		s.hash = desc.Digest.Algorithm().Hash()
	}
	if s.connections <= 0 {
		s.connections = defaultConnections
	}
	if s.chunkBytes <= 0 {
		s.chunkBytes = defaultChunkBytes
	}
	if _, local := repo.(*layout); local || NoRanges(repo) {
		s.single = true
		return s
	}
	s.ring = make([]*chunk, s.connections+slackChunks)
	s.start()
	return s
}

// nextBytes is the size of the next chunk. The first ones, which are asked for at the
// same time and share the line, are each a step larger than the one before: what the
// reader wants first comes first, and since connections then finish one after the other,
// the line is not idle until all of them have asked for more. What is left at the end is
// divided evenly among the connections, but not into parts of less than minChunkBytes.
// Called with mu held.
func (s *stream) nextBytes() int64 {
	left, c := s.desc.Size-s.taken, int64(s.connections)
	n := min(max(left/(c-int64(s.next)%c)+1, minChunkBytes), s.chunkBytes)
	if s.next < s.connections && s.desc.Size > minChunkBytes {
		step := s.desc.Size/(c*(c+1)/2) + stepUnit - 1
		n = max(min(step&^(stepUnit-1), s.chunkBytes/c), 1) * int64(s.next+1)
	}
	return min(n, s.chunkBytes, left)
}

// chunk is one range in flight or waiting for the reader.
type chunk struct {
	off    int64 // in the blob
	buf    []byte
	fresh  bool  // memory that was never used
	filled int   // bytes of buf that are there; they do not change any more
	err    error // why there are no more
	done   bool  // the worker has left it
}

type stream struct {
	ctx         context.Context // of the call that started it
	repo        Repository
	desc        v1.Descriptor
	connections int
	chunkBytes  int64

	cancel  context.CancelFunc // ends the workers
	workers sync.WaitGroup
	unwatch func() bool

	mu    sync.Mutex // guards the following; held for bookkeeping, not for copying
	cond  sync.Cond  // broadcast at every change
	ring  []*chunk   // chunk i at i % len(ring)
	next  int        // first chunk no worker has taken
	taken int64      // where it begins
	head  int        // chunk the reader is at
	stop  bool       // no worker takes another chunk
	err   error      // sticky end of the stream

	// Only the reader touches these.
	pos    int64
	hash   hash.Hash
	single bool          // one request for everything
	body   io.ReadCloser // of that request
}

func (s *stream) start() {
	ctx, cancel := context.WithCancel(s.ctx)
	s.cancel = cancel
	s.unwatch = context.AfterFunc(s.ctx, func() { s.fail(context.Cause(s.ctx)) })
	for range s.connections {
		s.workers.Go(func() { s.work(ctx) })
	}
}

// fail ends the stream unless it has ended.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.cond.Broadcast()
}

// work fetches chunks until there are no more. Chunks are taken in order and
// only within the window after the reader, so the reader's chunk always has a
// worker and a buffer.
func (s *stream) work(ctx context.Context) {
	for {
		s.mu.Lock()
		for s.err == nil && !s.stop && s.taken < s.desc.Size && s.next >= s.head+len(s.ring) {
			s.cond.Wait()
		}
		if s.err != nil || s.stop || s.taken == s.desc.Size {
			s.mu.Unlock()
			return
		}
		c := newChunk(s.taken, int(s.nextBytes()))
		s.ring[s.next%len(s.ring)] = c
		s.next++
		s.taken += int64(len(c.buf))
		s.mu.Unlock()

		err := s.fill(ctx, c)
		s.mu.Lock()
		c.err, c.done = err, true
		s.stop = s.stop || err != nil
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

func (s *stream) fill(ctx context.Context, c *chunk) error {
	given := make(chan struct{})
	go func() { // meanwhile the kernel gives the memory
		defer close(given)
		if c.fresh {
			clear(c.buf)
		}
	}()
	body, err := s.repo.ReadRange(ctx, s.desc, c.off, int64(len(c.buf)))
	<-given
	if err != nil {
		return err
	}
	defer body.Close()
	for filled := 0; filled < len(c.buf); {
		n, err := io.ReadFull(body, c.buf[filled:min(filled+stepBytes, len(c.buf))])
		filled += n
		s.mu.Lock()
		c.filled = filled
		s.cond.Broadcast()
		s.mu.Unlock()
		if err != nil && filled < len(c.buf) {
			return err
		}
	}
	_, _ = body.Read(make([]byte, 1)) // to EOF, so that the connection is kept
	return nil
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if s.single {
			return s.readSingle(p)
		}
		part, err := s.wait()
		switch {
		case errors.Is(err, ErrNoRanges):
			s.stopWorkers()
			s.single = true
			continue
		case err != nil:
			return 0, s.end(err)
		case part == nil:
			return 0, s.end(s.verified())
		}
		n := copy(p, part)
		s.digest(p[:n])
		s.advance(n)
		return n, nil
	}
}

// wait returns bytes of the chunk at the read position that are there; nil at
// the end of the blob.
func (s *stream) wait() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.err != nil {
			return nil, s.err
		}
		if s.pos == s.desc.Size {
			return nil, nil
		}
		if s.head < s.next {
			c := s.ring[s.head%len(s.ring)]
			at := int(s.pos - c.off)
			if c.filled > at {
				return c.buf[at:c.filled], nil
			}
			if c.err != nil {
				return nil, c.err
			}
		} else if s.stop {
			return nil, errShort // a later chunk failed and nobody takes this one
		}
		s.cond.Wait()
	}
}

// advance moves the read position; a chunk read to its end makes room.
func (s *stream) advance(n int) {
	s.pos += int64(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.ring[s.head%len(s.ring)]
	if s.pos < c.off+int64(len(c.buf)) {
		return
	}
	for !c.done { // it is full; the worker is about to leave it
		s.cond.Wait()
	}
	freeBuffer(c.buf)
	s.ring[s.head%len(s.ring)] = nil
	s.head++
	s.cond.Broadcast()
}

// readSingle reads through one request for the whole blob.
func (s *stream) readSingle(p []byte) (int, error) {
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if s.body == nil {
		if s.body, err = s.repo.ReadRange(s.ctx, s.desc, 0, s.desc.Size); err != nil {
			return 0, s.end(err)
		}
		if _, err := io.CopyN(io.Discard, s.body, s.pos); err != nil {
			return 0, s.end(err)
		}
	}
	n, err := s.body.Read(p)
	s.digest(p[:n])
	s.pos += int64(n)
	if err == io.EOF {
		err = s.verified()
	}
	if err != nil {
		err = s.end(err)
	}
	return n, err
}

func (s *stream) digest(b []byte) {
	if s.hash != nil {
		s.hash.Write(b)
	}
}

// verified is io.EOF if all bytes came and, where that is asked for, hash to the digest.
func (s *stream) verified() error {
	var err error
	switch {
	case s.pos != s.desc.Size:
		err = errShort
	case s.hash == nil:
		return io.EOF
	default:
		got := digestOf(s.desc.Digest.Algorithm(), s.hash)
		if got == s.desc.Digest {
			return io.EOF
		}
		err = &DigestError{Want: s.desc.Digest, Got: got}
	}
	return &Error{Op: "fetch blob", Reference: s.desc.Digest.String(), Retryable: true, Err: err}
}

func (s *stream) end(err error) error {
	s.fail(err)
	return err
}

func (s *stream) stopWorkers() {
	if s.cancel == nil {
		return
	}
	s.mu.Lock()
	s.stop = true
	s.cond.Broadcast()
	s.mu.Unlock()
	s.cancel()
	s.workers.Wait()
	// Buffers still in the ring are left to the collector: a Read may be
	// copying out of one.
}

// Close implements io.Closer. It must not be called while a Read is under way
// in the single-request mode; a Read waiting for ranges is woken.
func (s *stream) Close() error {
	s.fail(io.ErrClosedPipe)
	if s.unwatch != nil {
		s.unwatch()
	}
	s.stopWorkers()
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
	return nil
}

func newChunk(off int64, n int) *chunk {
	if n <= defaultChunkBytes && n > defaultChunkBytes/2 {
		select {
		case b := <-chunkBuffers:
			return &chunk{off: off, buf: b[:n]}
		default:
			return &chunk{off: off, buf: make([]byte, n, defaultChunkBytes), fresh: true}
		}
	}
	return &chunk{off: off, buf: make([]byte, n), fresh: true}
}

func freeBuffer(b []byte) {
	if cap(b) == defaultChunkBytes {
		select {
		case chunkBuffers <- b:
		default:
		}
	}
}
