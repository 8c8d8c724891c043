package profilestore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// envPut makes the test's program put records into the store that it names, and print
// their IDs, until it is killed or has put as many as the next variable says.
const envPut, envCount, envFrom = "THAW_TEST_PUT", "THAW_TEST_COUNT", "THAW_TEST_FROM"

func TestMain(m *testing.M) {
	if path := os.Getenv(envPut); path != "" {
		var n, from int
		fmt.Sscan(os.Getenv(envCount), &n)
		fmt.Sscan(os.Getenv(envFrom), &from)
		for i := from; n == 0 || i < from+n; i++ {
			if _, err := New(path, Options{}).Put(context.Background(), small(i)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(small(i).ID)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

// small is a record that is quickly made; a greater n is a later one.
func small(n int) *profile.Record {
	begun := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
	ms := float64(400 + n%7)
	return &profile.Record{Version: 1, ID: fmt.Sprintf("%s-%04x", begun.Format("20060102-150405"), n%65536), Source: profile.SourceMeasure, Begun: begun,
		Subjects: []profile.Subject{{Name: "a", Image: "registry.example.com/a:1", Runs: []profile.Run{{TotalMs: &ms, Events: []profile.Event{}, Phases: []profile.Phase{}}, {Error: "no", Events: []profile.Event{}, Phases: []profile.Phase{}}}}}}
}

func newStore(t testing.TB, opts Options) *Store {
	return New(filepath.Join(t.TempDir(), "state", FileName), opts)
}

func put(t testing.TB, s *Store, r *profile.Record) []string {
	t.Helper()
	evicted, err := s.Put(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return evicted
}

func ids(t testing.TB, s *Store) []string {
	t.Helper()
	heads, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range heads {
		out = append(out, h.ID)
	}
	return out
}

func TestStore(t *testing.T) {
	s := newStore(t, Options{})
	if got := ids(t, s); len(got) != 0 {
		t.Fatalf("a new store has %v", got)
	}
	for _, f := range []func() error{
		func() error { _, err := s.Get(t.Context(), "x"); return err },
		func() error { return s.Delete(t.Context(), "x") },
		func() error { return s.Pin(t.Context(), true, "x") },
		func() error { _, err := s.Resolve(t.Context(), Last); return err },
	} {
		if err := f(); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v of an empty store", err)
		}
	}
	if _, err := os.Stat(s.Path()); err == nil {
		t.Error("asking made a file")
	}
	a, b := profiletest.Modes(1, profiletest.Node), profiletest.Record(2)
	put(t, s, b)
	put(t, s, a)
	for _, r := range []*profile.Record{a, b} {
		got, err := s.Get(t.Context(), r.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Fatal(diff)
		}
	}
	heads, err := s.List(t.Context())
	if err != nil || len(heads) != 2 || heads[0].ID != b.ID || len(heads[0].Subjects) != 3 || heads[1].Subjects[1].Mode != profiletest.Eager ||
		*heads[1].Subjects[0].P50Ms != a.Subjects[0].Summarize().TotalMs.P50 || heads[0].Bytes == 0 || heads[0].Labels["release"] != "1.2" {
		t.Fatalf("%+v, %v", heads, err)
	}
	if info, err := os.Stat(s.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	b.Name = "another name"
	if err := s.Pin(t.Context(), true, b.ID); err != nil {
		t.Fatal(err)
	}
	put(t, s, b)
	if h, err := s.Resolve(t.Context(), b.ID); err != nil || h.Name != b.Name || !h.Pinned {
		t.Errorf("replaced: %+v, %v", h, err)
	}
	if err := s.Delete(t.Context(), a.ID, "x"); !errors.Is(err, ErrNotFound) || len(ids(t, s)) != 2 {
		t.Errorf("deleted one of two: %v, %v", err, ids(t, s))
	}
	if err := s.Delete(t.Context(), a.ID); err != nil || len(ids(t, s)) != 1 {
		t.Errorf("%v, %v", err, ids(t, s))
	}
	if _, err := s.Get(t.Context(), a.ID); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Put(t.Context(), &profile.Record{}); err == nil {
		t.Error("a record that is none is kept")
	}
}

func TestResolve(t *testing.T) {
	s := newStore(t, Options{})
	for _, n := range []int{1, 2, 100_000} {
		put(t, s, small(n))
	}
	own := small(200_000)
	own.Source = profile.SourceDaemon
	put(t, s, own)
	for name, want := range map[string]string{small(1).ID: small(1).ID, "20260302-000001": small(1).ID, "20260303": small(100_000).ID, Last: small(100_000).ID, "20260304": own.ID} {
		if h, err := s.Resolve(t.Context(), name); err != nil || h.ID != want {
			t.Errorf("%s: %v, %v", name, h.ID, err)
		}
	}
	var several *AmbiguousError
	if _, err := s.Resolve(t.Context(), "20260302"); !errors.As(err, &several) || len(several.IDs) != 2 {
		t.Error(err)
	}
	for _, name := range []string{"", "x", "2026x"} {
		if h, err := s.Resolve(t.Context(), name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v, %v", name, h.ID, err)
		}
	}
	if err := s.Delete(t.Context(), small(1).ID, small(2).ID, small(100_000).ID); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Resolve(t.Context(), Last); err != nil || h.ID != own.ID {
		t.Errorf("the last of the daemon's own: %v, %v", h.ID, err)
	}
}

func TestEvict(t *testing.T) {
	s := newStore(t, Options{Keep: 3})
	for n := range 3 {
		if gone := put(t, s, small(n)); gone != nil {
			t.Fatalf("%v are gone", gone)
		}
	}
	if err := s.Pin(t.Context(), true, small(0).ID); err != nil {
		t.Fatal(err)
	}
	if gone := put(t, s, small(3)); !slices.Equal(gone, []string{small(1).ID}) {
		t.Errorf("%v are gone", gone)
	}
	for n := range 5 { // the daemon's do not push out others
		r := small(100 + n)
		r.Source = profile.SourceDaemon
		put(t, s, r)
	}
	if got, want := ids(t, s), []string{small(104).ID, small(103).ID, small(102).ID, small(3).ID, small(2).ID, small(0).ID}; !slices.Equal(got, want) {
		t.Errorf("%v are left, want %v", got, want)
	}
	old := small(1) // older than all, and new here: it stays
	if gone := put(t, s, old); !slices.Equal(gone, []string{small(2).ID}) {
		t.Errorf("%v are gone", gone)
	}
	for _, n := range []int{1, 3} {
		if err := s.Pin(t.Context(), true, small(n).ID); err != nil {
			t.Fatal(err)
		}
	}
	if gone := put(t, s, small(4)); gone != nil { // all others are pinned
		t.Errorf("%v are gone", gone)
	}
}

func TestEvictBytes(t *testing.T) {
	first := profiletest.Modes(1, profiletest.Nginx)
	s := newStore(t, Options{})
	put(t, s, first)
	heads, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s = New(s.Path(), Options{KeepBytes: 2*heads[0].Bytes + heads[0].Bytes/2})
	if gone := put(t, s, profiletest.Modes(2, profiletest.Nginx)); gone != nil {
		t.Errorf("%v are gone", gone)
	}
	if gone := put(t, s, profiletest.Modes(3, profiletest.Nginx)); !slices.Equal(gone, []string{first.ID}) {
		t.Errorf("%v are gone", gone)
	}
	if _, err := s.Put(t.Context(), profiletest.Record(4)); err == nil || len(ids(t, s)) != 2 {
		t.Errorf("larger than all that is kept: %v, %v", err, ids(t, s))
	}
}

// TestWait: a call waits until others are done, for as long as it may.
func TestWait(t *testing.T) {
	s := newStore(t, Options{Wait: 50 * time.Millisecond})
	put(t, s, small(1))
	f, err := os.Open(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context()); err == nil || !strings.Contains(err.Error(), "other processes have had") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(s.Path(), Options{}).Put(ctx, small(2)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	done := make(chan error)
	go func() {
		_, err := New(s.Path(), Options{Wait: time.Minute}).List(t.Context())
		done <- err
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// child puts records in a process of its own.
func child(t *testing.T, path string, from, count int) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envPut+"="+path, fmt.Sprintf("%s=%d", envCount, count), fmt.Sprintf("%s=%d", envFrom, from))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// TestProcesses: several processes put records while another reads.
func TestProcesses(t *testing.T) {
	s := newStore(t, Options{})
	const processes, each = 4, 15
	var all []*exec.Cmd
	var outs []*bufio.Scanner
	for i := range processes {
		cmd, out := child(t, s.Path(), 1000*i, each)
		all, outs = append(all, cmd), append(outs, out)
	}
	for len(ids(t, s)) < processes*each/2 {
		if _, err := s.Resolve(t.Context(), Last); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	for i, cmd := range all {
		for outs[i].Scan() {
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if got := ids(t, s); len(got) != processes*each {
		t.Errorf("%d records are there", len(got))
	}
}

// TestKill: what a process said that it has put is there after kill -9, whenever that
// comes.
func TestKill(t *testing.T) {
	s := newStore(t, Options{})
	rnd := rand.New(rand.NewPCG(1, 1))
	said := map[string]bool{}
	for round := range 12 {
		cmd, out := child(t, s.Path(), 1000*round, 0)
		for range 1 + rnd.IntN(8) {
			if out.Scan() {
				said[out.Text()] = true
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for out.Scan() {
			said[out.Text()] = true
		}
		cmd.Wait()
		heads, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for id := range said {
			if !slices.ContainsFunc(heads, func(h Head) bool { return h.ID == id }) {
				t.Fatalf("round %d: %s is lost", round, id)
			}
		}
		for _, h := range heads {
			if _, err := s.Get(t.Context(), h.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(t, s)
}

// check is bbolt's own check of the file.
func check(t *testing.T, s *Store) {
	t.Helper()
	err := s.with(t.Context(), false, func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) error {
			var errs []error
			for err := range tx.Check() {
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
	})
	if err != nil {
		t.Error(err)
	}
}

func damages() int {
	if os.Getenv("THAW_LONG") != "" {
		return 1000
	}
	return 50
}

// TestDamage: whatever happens to the file, nothing crashes or hangs, reading changes
// nothing, and putting works, in a new file if need be, with the old one aside.
func TestDamage(t *testing.T) {
	base := newStore(t, Options{})
	for n := range 40 {
		put(t, base, small(n))
	}
	put(t, base, profiletest.Modes(1, profiletest.Nginx))
	good, err := os.ReadFile(base.Path())
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(2, 2))
	cases := map[string][]byte{"empty": {}, "text": []byte("no database at all\n"), "zeros": make([]byte, 1<<16), "cut within a page": good[:5000], "half": good[:len(good)/2]}
	for at := range len(good) / 4096 { // a page that runs on for ever
		cases[fmt.Sprintf("page %d runs on", at)] = slices.Concat(good[:at*4096+12], []byte{0xff, 0xff, 0xff, 0xff}, good[at*4096+16:])
	}
	for i := range damages() {
		b := slices.Clone(good)
		for range 1 + rnd.IntN(30) {
			switch at := rnd.IntN(len(b)); rnd.IntN(3) {
			case 0:
				b[at] ^= 1 << rnd.IntN(8)
			case 1: // a page's header
				b[at/4096*4096+rnd.IntN(32)] = byte(rnd.Uint32())
			default: // a piece
				for j := at; j < min(at+rnd.IntN(200), len(b)); j++ {
					b[j] = byte(rnd.Uint32())
				}
			}
		}
		cases[fmt.Sprintf("damage %d", i)] = b
	}
	aside := 0
	for name, b := range cases {
		var log bytes.Buffer
		s := newStore(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err := os.MkdirAll(filepath.Dir(s.Path()), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Path(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		heads, err := s.List(t.Context())
		mustBeDamage(t, name, err)
		for _, h := range heads {
			if _, err := s.Get(t.Context(), h.ID); err != nil && !errors.Is(err, ErrNotFound) {
				mustBeDamage(t, name, err)
			}
		}
		if now, err := os.ReadFile(s.Path()); err != nil || !bytes.Equal(now, b) {
			t.Fatalf("%s: reading changed the file: %v", name, err)
		}
		if _, err := s.Put(t.Context(), small(5000)); err != nil {
			if errors.Is(err, errLayout) { // the version was hit
				continue
			}
			t.Fatalf("%s: %v", name, err)
		}
		others, err := filepath.Glob(s.Path() + ".damaged-*")
		if err != nil {
			t.Fatal(err)
		}
		if len(others) > 0 {
			aside++
			if kept, err := os.ReadFile(others[0]); err != nil || !bytes.Equal(kept, b) || !strings.Contains(log.String(), others[0]) {
				t.Errorf("%s: %v, aside it is not what it was, or nobody was told: %s", name, err, &log)
			}
			if got := ids(t, s); !slices.Equal(got, []string{small(5000).ID}) {
				t.Errorf("%s: the new file has %v", name, got)
			}
		}
		if r, err := s.Get(t.Context(), small(5000).ID); err != nil || r.ID != small(5000).ID {
			mustBeDamage(t, name, err)
		}
	}
	if aside < 10 {
		t.Errorf("only %d files were set aside: the damage is not worth much", aside)
	}
}

func mustBeDamage(t *testing.T, name string, err error) {
	t.Helper()
	var damage *DamagedError
	if err != nil && !errors.As(err, &damage) && !errors.Is(err, errLayout) {
		t.Errorf("%s: %v", name, err)
	}
}

// TestDamagedRecord: one that cannot be read is said to be it, and others can be.
func TestDamagedRecord(t *testing.T) {
	s := newStore(t, Options{})
	put(t, s, small(1))
	put(t, s, small(2))
	err := s.update(t.Context(), func(tx *bolt.Tx) error {
		b := slices.Clone(tx.Bucket(bucketRecords).Get([]byte(small(1).ID)))
		b[len(b)/2] ^= 1
		return errors.Join(tx.Bucket(bucketRecords).Put([]byte(small(1).ID), b), tx.Bucket(bucketHeads).Put([]byte(small(2).ID), []byte("{")))
	})
	if err != nil {
		t.Fatal(err)
	}
	var damage *DamagedError
	if _, err := s.Get(t.Context(), small(1).ID); !errors.As(err, &damage) || damage.ID != small(1).ID {
		t.Error(err)
	}
	heads, err := s.List(t.Context())
	if err != nil || len(heads) != 2 || heads[0].ID != small(2).ID || heads[0].Error == "" || heads[1].Error != "" {
		t.Errorf("%+v, %v", heads, err)
	}
	if _, err := s.Get(t.Context(), small(2).ID); err != nil {
		t.Errorf("its head is damaged, it is not: %v", err)
	}
	if err := s.Pin(t.Context(), true, small(2).ID); !errors.As(err, &damage) {
		t.Error(err)
	}
	put(t, s, small(2))
	if err := s.Delete(t.Context(), small(1).ID); err != nil {
		t.Error(err)
	}
	if heads, err := s.List(t.Context()); err != nil || len(heads) != 1 || heads[0].Error != "" {
		t.Errorf("%+v, %v", heads, err)
	}
}

// TestLayout: what another version made is left alone.
func TestLayout(t *testing.T) {
	s := newStore(t, Options{})
	put(t, s, small(1))
	err := s.update(t.Context(), func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte("2")) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context()); !errors.Is(err, errLayout) {
		t.Error(err)
	}
	if _, err := s.Put(t.Context(), small(2)); !errors.Is(err, errLayout) {
		t.Error(err)
	}
}

func BenchmarkList(b *testing.B) {
	s := newStore(b, Options{})
	for n := range 200 {
		put(b, s, small(n))
	}
	for b.Loop() {
		if _, err := s.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s, r := newStore(b, Options{}), profiletest.Modes(1, profiletest.PythonML)
	for b.Loop() {
		if _, err := s.Put(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s, r := newStore(b, Options{}), profiletest.Modes(1, profiletest.PythonML)
	put(b, s, r)
	for b.Loop() {
		if _, err := s.Get(b.Context(), r.ID); err != nil {
			b.Fatal(err)
		}
	}
}
