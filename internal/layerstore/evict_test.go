package layerstore

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// lastUsed sets when a layer was last used.
func lastUsed(t *testing.T, s *Store, f *fake, at time.Time) {
	t.Helper()
	must(t, os.Chtimes(filepath.Join(s.layerDir(f.meta.Blob), metaName), at, at))
}

func blobsOf(infos []Info) (out []digest.Digest) {
	for _, i := range infos {
		out = append(out, i.Blob)
	}
	return out
}

func TestEvict(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	now := time.Now()
	var fakes []*fake
	for i := range 6 {
		f := makeFake(uint64(i), 64<<10, 64<<10)
		l := acquire(t, s, f)
		put(t, l, f, 0)
		must(t, l.Release())
		lastUsed(t, s, f, now.Add(-time.Duration(10-i)*time.Hour)) // the first is the oldest
		fakes = append(fakes, f)
	}
	used, pinned, wanted := fakes[0], fakes[1], fakes[2]
	l := acquire(t, s, used)
	must(t, s.Pin("image:x", pinned.meta.Blob))
	lastUsed(t, s, used, now.Add(-10*time.Hour))
	sparse := makeFake(9, 16<<20, 1<<20)
	ls := acquire(t, s, sparse)
	put(t, ls, sparse, 0)
	must(t, ls.Release())

	u, err := s.Usage()
	must(t, err)
	if u.Bytes < 6*64<<10+1<<20 || u.Bytes > 3<<20 || u.Evictable > u.Bytes-2*64<<10 || u.Evictable < 4*64<<10+1<<20 {
		t.Errorf("usage %+v", u)
	}
	keep := func(d digest.Digest) bool { return d == wanted.meta.Blob }
	if got, err := s.Evict(t.Context(), 0, keep); err != nil || len(got) != 0 {
		t.Errorf("evicted %v for nothing, %v", blobsOf(got), err)
	}
	got, err := s.Evict(t.Context(), 1, keep)
	if want := []digest.Digest{fakes[3].meta.Blob}; err != nil || !slices.Equal(blobsOf(got), want) || got[0].DiskBytes < 64<<10 {
		t.Errorf("evicted %+v, want the oldest that may go, %v; %v", got, want, err)
	}
	got, err = s.Evict(t.Context(), 64<<10+16000, keep)
	if want := []digest.Digest{fakes[4].meta.Blob, fakes[5].meta.Blob}; err != nil || !slices.Equal(blobsOf(got), want) {
		t.Errorf("evicted %v, want %v; %v", blobsOf(got), want, err)
	}
	got, err = s.Evict(t.Context(), 1<<40, keep)
	if want := []digest.Digest{sparse.meta.Blob}; err != nil || !slices.Equal(blobsOf(got), want) {
		t.Errorf("evicted %v, want %v; %v", blobsOf(got), want, err)
	}
	checkBelieved(t, l, used)
	must(t, l.Release())
	for _, f := range []*fake{used, pinned, wanted} {
		if !exists(s.layerDir(f.meta.Blob)) {
			t.Errorf("layer %s is gone", f.meta.Blob)
		}
	}
	noTemps(t, s)
}

// TestEvictRace: layers are evicted as fast as can be while others acquire,
// write, prove and pin them. Who has a layer must not lose a byte of it.
func TestEvictRace(t *testing.T) {
	s := openStore(t, t.TempDir(), boot1)
	var fakes []*fake
	for i := range 4 {
		fakes = append(fakes, makeFake(uint64(i), 3*testSpan+5, testSpan))
	}
	stop := make(chan struct{})
	var evictors, users sync.WaitGroup
	evicted := 0
	evictors.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := s.Evict(t.Context(), 1<<40, nil)
			if err != nil {
				t.Error(err)
			}
			evicted += len(got)
		}
	})
	for u := range 3 {
		users.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(u)))
			owner := fmt.Sprint("user:", u)
			for range 60 {
				f := fakes[rng.IntN(len(fakes))]
				l, err := s.Acquire(t.Context(), f.meta, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range f.meta.Spans() {
					if err := l.Put(i, f.span(i)); err != nil {
						t.Error(err)
					}
				}
				pin := rng.IntN(2) == 0
				if pin {
					err = errors.Join(s.Pin(owner, f.meta.Blob), l.Finish(t.Context()))
				}
				for i := range f.meta.Spans() {
					off, n := f.meta.Span(i)
					got := make([]byte, n)
					if _, err := l.File().ReadAt(got, off); err != nil || !l.Have(i) || string(got) != string(f.span(i)) {
						t.Errorf("span %d of a layer in use is gone: %v", i, err)
					}
				}
				if !exists(l.Path()) {
					t.Error("the file of a layer in use is gone")
				}
				err = errors.Join(err, l.Release())
				if pin {
					if info, ierr := s.info(f.meta.Blob); ierr != nil || !info.Proven {
						t.Errorf("a pinned layer is %+v, %v", info, ierr)
					}
					err = errors.Join(err, s.Unpin(owner))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	close(stop)
	evictors.Wait()
	if evicted == 0 {
		t.Error("nothing was evicted")
	}
	noTemps(t, s)
}

var seed = flag.Uint64("seed", 0, "of TestModel; 0: another each time")

// model is what must be in a store, kept without one.
type model struct {
	layers map[int]*modelLayer
	pins   map[string]map[int]bool
}

type modelLayer struct {
	have     map[int]bool // spans that were put
	complete bool
	users    []*Layer
}

func (m *model) pinned(i int) bool {
	for _, layers := range m.pins {
		if layers[i] {
			return true
		}
	}
	return false
}

// TestModel: a random sequence of everything that can be done to layers, kills
// and restarts with it, against a model that says what must be there and what must
// be gone.
func TestModel(t *testing.T) {
	from, steps := *seed, 800
	if from == 0 {
		from = uint64(time.Now().UnixNano())
	}
	if os.Getenv("THAW_LONG") != "" {
		steps = 40000
	}
	t.Logf("-seed=%d", from)
	rng := rand.New(rand.NewPCG(from, 0))
	dir := t.TempDir()
	s := openStore(t, dir, boot1)
	var fakes []*fake
	for i := range 8 {
		fakes = append(fakes, makeFake(uint64(i), (1+i)*testSpan-7*i, testSpan))
	}
	m := &model{map[int]*modelLayer{}, map[string]map[int]bool{}}
	owners := []string{"image:a", "image:b", "lost-pins"}
	free := func(i int) bool { return m.layers[i] != nil && len(m.layers[i].users) == 0 && !m.pinned(i) }
	clock := time.Now().Add(-1000 * time.Hour)
	used := map[int]time.Time{} // last use, in a time of our own

	ops := map[string]func(i int, f *fake){
		"acquire": func(i int, f *fake) {
			l := acquire(t, s, f)
			if m.layers[i] == nil {
				m.layers[i] = &modelLayer{have: map[int]bool{}}
			}
			m.layers[i].users = append(m.layers[i].users, l)
		},
		"put": func(i int, f *fake) {
			if ml := m.layers[i]; ml != nil && len(ml.users) > 0 {
				n := rng.IntN(f.meta.Spans())
				must(t, ml.users[0].Put(n, f.span(n)))
				ml.have[n] = true
			}
		},
		"finish": func(i int, f *fake) {
			if ml := m.layers[i]; ml != nil && len(ml.users) > 0 {
				putAll(t, ml.users[0], f)
				must(t, ml.users[0].Finish(t.Context()))
				for n := range f.meta.Spans() {
					ml.have[n] = true
				}
				ml.complete = true
			}
		},
		"release": func(i int, _ *fake) {
			if ml := m.layers[i]; ml != nil && len(ml.users) > 0 {
				must(t, ml.users[0].Release())
				ml.users = ml.users[1:]
				clock = clock.Add(time.Hour)
				lastUsed(t, s, fakes[i], clock)
				used[i] = clock
			}
		},
		"pin": func(i int, f *fake) {
			o := owners[rng.IntN(len(owners))]
			must(t, s.Pin(o, f.meta.Blob))
			if m.pins[o] == nil {
				m.pins[o] = map[int]bool{}
			}
			m.pins[o][i] = true
		},
		"unpin": func(int, *fake) {
			o := owners[rng.IntN(len(owners))]
			must(t, s.Unpin(o))
			delete(m.pins, o)
		},
		"remove": func(i int, f *fake) {
			err := s.Remove(t.Context(), f.meta.Blob)
			switch ml := m.layers[i]; {
			case ml == nil && !m.pinned(i):
				if !errors.Is(err, ErrNotFound) {
					t.Fatalf("remove nothing: %v", err)
				}
			case free(i):
				must(t, err)
				delete(m.layers, i)
			case !errors.Is(err, ErrInUse) && !errors.Is(err, ErrPinned):
				t.Fatalf("remove what is needed: %v", err)
			}
		},
		"gc": func(int, *fake) {
			_, err := s.GC(t.Context(), nil)
			must(t, err)
			for i := range fakes {
				if free(i) {
					delete(m.layers, i)
				}
			}
		},
		"evict": func(int, *fake) {
			n := 1 + rng.IntN(3)
			got, err := s.Evict(t.Context(), int64(n)<<13, nil)
			must(t, err)
			var order []int
			for i := range fakes {
				if free(i) {
					order = append(order, i)
				}
			}
			slices.SortFunc(order, func(a, b int) int { return used[a].Compare(used[b]) })
			if len(got) > len(order) || len(got) == 0 && len(order) > 0 {
				t.Fatalf("evicted %v, %v could go", blobsOf(got), order)
			}
			for n, blob := range blobsOf(got) {
				if fakes[order[n]].meta.Blob != blob {
					t.Fatalf("evicted %v, want the least recently used of %v", blobsOf(got), order)
				}
				delete(m.layers, order[n])
			}
		},
		"kill": func(int, *fake) {
			kill(s)
			s = openStore(t, dir, boot1)
			for _, ml := range m.layers {
				ml.users = nil
			}
		},
		"restart": func(int, *fake) {
			must(t, s.Close())
			s = openStore(t, dir, boot1)
			for _, ml := range m.layers {
				ml.users = nil
			}
		},
	}
	names := []string{"acquire", "acquire", "acquire", "put", "put", "put", "finish", "release", "release", "release", "pin", "unpin", "remove", "gc", "evict", "evict", "kill", "restart"}
	for step := range steps {
		i, op := rng.IntN(len(fakes)), names[rng.IntN(len(names))]
		ops[op](i, fakes[i])
		m.compare(t, s, fakes, fmt.Sprintf("step %d, %s %d", step, op, i))
		if op == "kill" || op == "restart" { // last uses are ours again
			for i := range m.layers {
				clock = clock.Add(time.Hour)
				lastUsed(t, s, fakes[i], clock)
				used[i] = clock
			}
		}
	}
}

func (m *model) compare(t *testing.T, s *Store, fakes []*fake, when string) {
	t.Helper()
	infos, err := s.List()
	must(t, err)
	got := map[digest.Digest]Info{}
	for _, info := range infos {
		got[info.Blob] = info
	}
	for i, f := range fakes {
		ml, info := m.layers[i], got[f.meta.Blob]
		if (ml != nil) != (info.Blob != "") {
			t.Fatalf("%s: layer %d is there: %v, want %v", when, i, info.Blob != "", ml != nil)
		}
		if ml == nil {
			continue
		}
		if info.Proven != ml.complete || info.InUse != (len(ml.users) > 0) || len(info.Pins) > 0 != m.pinned(i) {
			t.Fatalf("%s: layer %d is %+v, want %+v", when, i, info, ml)
		}
		if ml.complete {
			b, err := os.ReadFile(tarFile(s, f))
			if err != nil || string(b) != string(f.data) {
				t.Fatalf("%s: layer %d has other bytes (%v)", when, i, err)
			}
		}
		for _, l := range ml.users {
			for n := range ml.have {
				if !l.Have(n) && !l.Suspect(n) {
					t.Fatalf("%s: span %d of layer %d is lost", when, n, i)
				}
			}
			checkBelieved(t, l, f)
		}
	}
}
