package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

func TestStream(t *testing.T) {
	small := StreamOptions{Connections: 4, ChunkBytes: 1 << 20}
	tests := []struct {
		name  string
		size  int
		opts  StreamOptions
		fault faultFunc
	}{
		{"empty", 0, small, nil},
		{"one byte", 1, small, nil},
		{"smaller than a chunk", 400_000, small, nil},
		{"exactly two chunks", 1 << 20, StreamOptions{Connections: 2, ChunkBytes: 512 << 10}, nil},
		{"many chunks", 9<<20 + 7, small, nil},
		{"defaults", 5<<20 + 1, StreamOptions{}, nil},
		{"one connection", 3 << 20, StreamOptions{Connections: 1, ChunkBytes: 1 << 20}, nil},
		{"resets", 6 << 20, small, first(12, cutAfter(300_000))},
		{"resets and refusals", 6 << 20, small, func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			return []faultFunc{cutAfter(100_000), status(500), status(429, "Retry-After", "1"), nil, nil}[n%5] != nil &&
				n < 20 && []faultFunc{cutAfter(100_000), status(500), status(429, "Retry-After", "1")}[n%5](n, w, r, next)
		}},
		{"no ranges", 20 << 20, small, noRanges},
		{"no ranges and a reset", 20 << 20, small, func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			r.Header.Del("Range")
			return n == 6 && cutAfter(15<<20)(n, w, r, next)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				blob := randomBytes(tt.size)
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
				if tt.fault != nil {
					reg.on("/blobs/", tt.fault)
				}
				w.serve("localhost:1", reg)
				repo := w.repo(w.client(Options{}), "localhost:1/a/b")
				for range 2 { // the second time it is known what the server cannot do
					s := Stream(t.Context(), repo, d, tt.opts)
					got, err := io.ReadAll(s)
					if err != nil || !bytes.Equal(got, blob) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					if n, err := s.Read(make([]byte, 5)); n != 0 || err != io.EOF {
						t.Errorf("after the end: %d, %v", n, err)
					}
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

func TestStreamReaderContract(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		blob := randomBytes(2 << 20)
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
		w.serve("localhost:1", reg)
		s := Stream(t.Context(), w.repo(w.client(Options{}), "localhost:1/a/b"), d, StreamOptions{})
		defer s.Close()
		if err := iotest.TestReader(s, blob); err != nil {
			t.Error(err)
		}
	})
}

// Wrong bytes never end in io.EOF.
func TestStreamVerifies(t *testing.T) {
	for _, f := range []faultFunc{nil, noRanges} {
		bubble(t, func(t *testing.T, w *world) {
			blob := randomBytes(9 << 20)
			reg := newFakeRegistry()
			d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
			reg.on("/blobs/", func(n int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				if f != nil {
					f(n, w, r, next)
				}
				rec := record(r, next)
				copyHeader(w, rec)
				w.WriteHeader(rec.Code)
				b := rec.Body.Bytes()
				b[len(b)-1] ^= 0x10
				_, _ = w.Write(b)
				return true
			})
			w.serve("localhost:1", reg)
			s := Stream(t.Context(), w.repo(w.client(Options{}), "localhost:1/a/b"), d, StreamOptions{ChunkBytes: 1 << 20})
			defer s.Close()
			var wrong *DigestError
			if _, err := io.Copy(io.Discard, s); !errors.As(err, &wrong) || wrong.Want != d.Digest || !Retryable(err) {
				t.Errorf("got %v", err)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.As(err, &wrong) {
				t.Errorf("then %v", err)
			}
			own := Stream(t.Context(), w.repo(w.client(Options{}), "localhost:1/a/b"), d, StreamOptions{ChunkBytes: 1 << 20, Unverified: true})
			defer own.Close()
			if n, err := io.Copy(io.Discard, own); n != d.Size || err != nil {
				t.Errorf("%d bytes of which the caller has digests, and %v", n, err)
			}
		})
	}
}

// A flipped byte in some answers costs a whole blob some tries, not its truth.
func TestBlobRetriesWrongBytes(t *testing.T) {
	for _, size := range []int{1000, 3 << 20} {
		bubble(t, func(t *testing.T, w *world) {
			blob := randomBytes(size)
			reg := newFakeRegistry()
			d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
			flip := func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				rec := record(r, next)
				copyHeader(w, rec)
				w.WriteHeader(rec.Code)
				b := rec.Body.Bytes()
				b[0] ^= 1
				_, _ = w.Write(b)
				return true
			}
			reg.on("/blobs/", first(2, flip))
			w.serve("localhost:1", reg)
			repo := w.repo(w.client(Options{}), "localhost:1/a/b")
			if b, err := repo.Blob(t.Context(), d); err != nil || !bytes.Equal(b, blob) {
				t.Errorf("%d bytes: %v", len(b), err)
			}
			reg.on("/blobs/", flip)
			start := time.Now()
			var wrong *DigestError
			if _, err := repo.Blob(t.Context(), d); !errors.As(err, &wrong) || time.Since(start) > 10*time.Second {
				t.Errorf("got %v after %v", err, time.Since(start))
			}
		})
	}
}

func TestStreamErrors(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(9<<20))
		w.serve("localhost:1", reg)
		repo := w.repo(w.client(Options{}), "localhost:1/a/b")
		opts := StreamOptions{ChunkBytes: 1 << 20}

		missing := d
		missing.Digest = missing.Digest[:len(missing.Digest)-4] + "0000"
		s := Stream(t.Context(), repo, missing, opts)
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, ErrNotFound) {
			t.Errorf("missing: %v", err)
		}
		s.Close()

		bad := d
		bad.Digest = "sha256:x"
		s = Stream(t.Context(), repo, bad, opts)
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("a bad digest is read")
		}
		s.Close()

		// Closed while a read waits, while workers fetch, and before any read.
		reg.on("/blobs/", stall(1000))
		s = Stream(t.Context(), repo, d, opts)
		var wg sync.WaitGroup
		wg.Go(func() {
			if n, err := io.Copy(io.Discard, s); err != io.ErrClosedPipe {
				t.Errorf("closed: %d bytes, %v", n, err)
			}
		})
		time.Sleep(time.Second)
		s.Close()
		wg.Wait()
		Stream(t.Context(), repo, d, opts).Close()

		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		s = Stream(ctx, repo, d, opts)
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, cause) {
			t.Errorf("cancelled: %v", err)
		}
		s.Close()
	})
}

// A reader that does not read holds the stream to its window.
func TestStreamBoundedMemory(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		blob := randomBytes(30 << 20)
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)
		w.serve("localhost:1", reg)
		c := w.client(Options{})
		s := Stream(t.Context(), w.repo(c, "localhost:1/a/b"), d, StreamOptions{Connections: 3, ChunkBytes: 1 << 20})
		defer s.Close()
		time.Sleep(time.Minute)
		// The first three are of 1, 2 and 3 thirds of a chunk, and two more are whole.
		if n := c.Stats().BytesRead.Load(); n < 4<<20-3 || n > 4<<20 {
			t.Errorf("%d bytes fetched ahead, want 4 MiB", n)
		}
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// The first chunks grow, none is larger than allowed, and together they are the blob.
func TestStreamChunks(t *testing.T) {
	for _, size := range []int64{0, 1, 100 << 10, 512 << 10, 512<<10 + 1, 3_625_524, 17_991_125, 1 << 30} {
		for _, connections := range []int{1, 3, 8} {
			for _, most := range []int64{512 << 10, 1 << 20, 2 << 20} {
				s := &stream{desc: v1.Descriptor{Size: size}, connections: connections, chunkBytes: most}
				var chunks []int64
				for s.taken < size {
					n := s.nextBytes()
					if n <= 0 || n > most {
						t.Fatalf("blob of %d, %d connections: chunk %d of %d at most has %d", size, connections, s.next, most, n)
					}
					chunks = append(chunks, n)
					s.next, s.taken = s.next+1, s.taken+n
				}
				if s.taken != size {
					t.Errorf("chunks of %d bytes in a blob of %d", s.taken, size)
				}
				first := chunks[:min(len(chunks), connections)]
				if len(first) == connections && connections > 1 && size > 4<<20 && (!slices.IsSorted(first) || first[0] >= first[connections-1]) {
					t.Errorf("blob of %d, %d connections, chunks of %d at most: they begin with %d", size, connections, most, first)
				}
				if size <= minChunkBytes && len(chunks) > 1 || int64(len(chunks)) > size/minChunkBytes+int64(connections)+1 {
					t.Errorf("blob of %d in %d requests", size, len(chunks))
				}
			}
		}
	}
}

// No chunk is larger than allowed where there are more connections than bytes in one.
func TestStreamChunksOfFewBytes(t *testing.T) {
	s := &stream{desc: v1.Descriptor{Size: 1 << 20}, connections: 8, chunkBytes: 5}
	for s.next < 20 {
		n := s.nextBytes()
		if n <= 0 || n > s.chunkBytes {
			t.Fatalf("chunk %d of %d at most has %d", s.next, s.chunkBytes, n)
		}
		s.next, s.taken = s.next+1, s.taken+n
	}
}

// Over TLS and HTTP/2, with the client's own connection pools: parallel
// requests do not share one connection.
func TestLanesOverHTTP2(t *testing.T) {
	blob := randomBytes(4 << 20)
	reg := newFakeRegistry()
	var mu sync.Mutex
	var protos, peers []string
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		protos = append(protos, r.Proto)
		if !slices.Contains(peers, r.RemoteAddr) {
			peers = append(peers, r.RemoteAddr)
		}
		mu.Unlock()
		reg.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, blob)

	ref, err := oci.ParseReference(strings.TrimPrefix(srv.URL, "https://") + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	// A loopback host is spoken to in plain http first, and says that it wants
	// TLS; with a certificate nobody knows it is refused.
	stranger := New(Options{DockerConfigDir: t.TempDir()})
	defer stranger.Close()
	repo, _ := stranger.Repository(ref)
	if _, err := repo.Blob(t.Context(), d); err == nil || Retryable(err) || !strings.Contains(err.Error(), "certificate") {
		t.Fatalf("unknown certificate: %v", err)
	}
	c := New(Options{DockerConfigDir: t.TempDir()})
	defer c.Close()
	for _, p := range c.lanes.pools {
		p.TLSClientConfig = &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	}
	repo, _ = c.Repository(ref)
	s := Stream(t.Context(), repo, d, StreamOptions{Connections: 4, ChunkBytes: 512 << 10})
	got, err := io.ReadAll(s)
	s.Close()
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, p := range protos {
		if p != "HTTP/2.0" {
			t.Errorf("spoke %s", p)
		}
	}
	if len(peers) < 2 || len(peers) > 6 {
		t.Errorf("%d connections for 4 at a time", len(peers))
	}
	if len(c.lanes.inFlight) != 0 {
		t.Errorf("lanes still in use: %v", c.lanes.inFlight)
	}
}

// shaped is a registry like a cloud's: time to the first byte, and a cap on
// each connection.
func shaped(b *testing.B, next http.Handler, firstByte time.Duration, bytesPerSecond float64) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(firstByte)
		next.ServeHTTP(&pacedWriter{ResponseWriter: w, start: time.Now(), rate: bytesPerSecond}, r)
	}))
	b.Cleanup(srv.Close)
	return srv
}

type pacedWriter struct {
	http.ResponseWriter
	start time.Time
	rate  float64
	sent  float64
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := p[n:min(n+64<<10, len(p))]
		m, err := w.ResponseWriter.Write(part)
		n += m
		if err != nil {
			return n, err
		}
		w.sent += float64(m)
		time.Sleep(time.Until(w.start.Add(time.Duration(w.sent / w.rate * 1e9))))
	}
	return len(p), nil
}

// BenchmarkStream is a 256 MB blob from a registry with 20 ms to the first byte
// and 60 MB/s a connection, and from one without limits.
func BenchmarkStream(b *testing.B) {
	blob := randomBytes(256_000_000)
	reg := newFakeRegistry()
	d := reg.addBlob(b, "a/b", v1.MediaTypeImageLayer, blob)
	for _, net := range []struct {
		name string
		ttfb time.Duration
		rate float64
	}{{"cloud", 20 * time.Millisecond, 60e6}, {"loopback", 0, 100e9}} {
		srv := shaped(b, reg.Handler, net.ttfb, net.rate)
		for _, connections := range []int{1, 4, 6, 8} {
			b.Run(fmt.Sprintf("%s/connections=%d", net.name, connections), func(b *testing.B) {
				c := New(Options{DockerConfigDir: b.TempDir()})
				defer c.Close()
				repo, err := c.Repository(oci.Reference{Registry: strings.TrimPrefix(srv.URL, "http://"), Repository: "a/b"})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(d.Size)
				b.ReportAllocs()
				for b.Loop() {
					s := Stream(b.Context(), repo, d, StreamOptions{Connections: connections})
					if _, err := io.Copy(io.Discard, s); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
			})
		}
	}
}
