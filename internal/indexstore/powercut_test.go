package indexstore

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/powercut"
	"github.com/thaw-project/thaw/internal/testenv"
)

// TestPowerCut cuts the power at each step of keeping, replacing and quarantining
// indexes: what is there afterwards is whole, and what was kept is there.
func TestPowerCut(t *testing.T) {
	testenv.NeedFUSE(t)
	rec := powercut.Record(t)
	s, err := Open(rec.Dir + "/index")
	if err != nil {
		t.Fatal(err)
	}
	layer, liar := someLayer(t, "f"), someImage(0)
	for _, step := range []struct {
		does func() error
		mark string
	}{
		{func() error { return s.Put(image, liar) }, "first"},
		{func() error { return s.PutLayer(layer) }, "layer"},
		{func() error { return s.Quarantine(image, liar.Digest, "it lied") }, "quarantined"},
		{func() error { return s.Put(image, someImage(1)) }, "second"},
		{func() error { return s.Put(image, someImage(2)) }, "third"},
	} {
		if step.mark == "quarantined" {
			rec.Mark("not first")
		}
		if err := step.does(); err != nil {
			t.Fatal(err)
		}
		rec.Mark(step.mark)
	}
	random := 10
	if os.Getenv("THAW_LONG") != "" {
		random = 100
	}
	rec.Stop(t).Crashes(t, random, func(t *testing.T, c powercut.Crash) {
		s, err := Open(c.Dir + "/index")
		if err != nil {
			t.Fatal(err)
		}
		marked := func(mark string) bool { return slices.Contains(c.Marks, mark) }
		checkIndex(t, s, marked)
		l, err := s.Layer(layer.Blob)
		if err == nil && !bytes.Equal(l.Bytes, layer.Bytes) {
			t.Error("another index of the layer")
		}
		if err != nil && (marked("layer") || !errors.Is(err, ErrNotFound)) {
			t.Errorf("index of the layer: %v", err)
		}
		if marked("quarantined") && !s.Quarantined(liar.Digest) {
			t.Error("a liar's name is cleared")
		}
		if err := errors.Join(s.Put(image, someImage(5)), s.PutLayer(layer)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(image); err != nil {
			t.Errorf("put anew: %v", err)
		}
	})
}

// checkIndex checks that the image's index is one that was put, and as new as was promised.
func checkIndex(t *testing.T, s *Store, marked func(string) bool) {
	t.Helper()
	got, err := s.Get(image)
	if err != nil {
		if !errors.Is(err, ErrNotFound) || marked("second") || marked("first") && !marked("not first") {
			t.Errorf("index of the image: %v", err)
		}
		return
	}
	oldest := 0
	switch {
	case marked("third"):
		oldest = 2
	case marked("second"), marked("quarantined"):
		oldest = 1
	}
	for n := oldest; n < 3; n++ {
		if cmp.Equal(someImage(n), got) {
			return
		}
	}
	t.Errorf("index %s of the image was not put, or is too old", got.Digest)
}

// FuzzRecord: whatever lies in the store is an index with the right digests, or none.
func FuzzRecord(f *testing.F) {
	s, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	im := someImage(1)
	if err := s.Put(image, im); err != nil {
		f.Fatal(err)
	}
	dir := s.path("images", name(image))
	record, err := os.ReadFile(dir + "/record.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record, im.Head)
	f.Add([]byte(`{"index":"sha256","head":"x:y"}`), []byte{})
	f.Add([]byte(`{"head":"sha256:../../../../etc/passwd"}`), []byte{})
	f.Fuzz(func(t *testing.T, record, head []byte) {
		if err := errors.Join(os.WriteFile(dir+"/record.json", record, 0o600), os.WriteFile(dir+"/"+name(digest.FromBytes(head)), head, 0o600)); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir + "/" + name(digest.FromBytes(head)))
		got, err := s.Get(image)
		if err != nil {
			return
		}
		if digest.FromBytes(got.Manifest) != got.Digest || !bytes.Equal(got.Head, head) && !bytes.Equal(got.Head, im.Head) {
			t.Error("an index that does not hash to its name")
		}
	})
}
