package layerstore

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

func sampleHave() *haveMap {
	h := &haveMap{flags: flagClean, spans: 70, generation: 9, mtimeNs: -5, bits: []uint64{1<<63 | 5, 1 << 5}}
	h.boot, _ = parseBootID(boot1)
	h.table = [32]byte{0xaa, 31: 0xbb}
	return h
}

// The bytes of a have file, as docs/formats/layerstore.md has them.
func TestHaveGolden(t *testing.T) {
	const want = "" + // without the checksum
		"74686177686176650100010046000000" + "0900000000000000fbffffffffffffff" +
		"11111111222243338444555555555555" +
		"aa000000000000000000000000000000000000000000000000000000000000bb" +
		"0500000000000080" + "20"
	got := hex.EncodeToString(encodeHave(sampleHave()))
	if len(got) != 2*(80+9+32) || got[:len(want)] != want {
		t.Errorf("have file is\n%s, want\n%s...", got, want)
	}
}

func TestHaveRoundTrip(t *testing.T) {
	for _, spans := range []int{0, 1, 7, 8, 9, 63, 64, 65, 70, 1000} {
		h := sampleHave()
		h.spans, h.bits = spans, make([]uint64, bitmapWords(spans))
		for i := 0; i < spans; i += 3 {
			h.bits[i>>6] |= 1 << (i & 63)
		}
		got, err := decodeHave(encodeHave(h))
		must(t, err)
		if diff := cmp.Diff(h, got, cmp.AllowUnexported(haveMap{})); diff != "" {
			t.Errorf("%d spans (-want +got):\n%s", spans, diff)
		}
	}
}

func TestMetaRoundTrip(t *testing.T) {
	for _, n := range []int{0, 5, 3 * testSpan} {
		m := makeFake(1, n, testSpan).meta
		b, err := encodeMeta(&m)
		must(t, err)
		got, err := decodeMeta(b)
		must(t, err)
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if m.TableDigest() != got.TableDigest() {
			t.Error("table digests differ")
		}
	}
}

// Each part of the table is in its digest.
func TestTableDigest(t *testing.T) {
	base := makeFake(1, 2*testSpan, testSpan).meta
	seen := map[digest.Digest]string{base.TableDigest(): "base"}
	for name, change := range map[string]func(*Meta){
		"blob":   func(m *Meta) { m.Blob = digest.FromString("o") },
		"diffID": func(m *Meta) { m.DiffID = digest.FromString("o") },
		"size":   func(m *Meta) { m.TarBytes-- },
		"spans":  func(m *Meta) { m.SpanDigests = [][32]byte{m.SpanDigests[1], m.SpanDigests[0]} },
	} {
		m := base
		change(&m)
		if was, ok := seen[m.TableDigest()]; ok {
			t.Errorf("%s has the digest of %s", name, was)
		}
		seen[m.TableDigest()] = name
	}
}

func withSum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(slices.Clip(b), sum[:]...)
}

func FuzzDecodeHave(f *testing.F) {
	good := encodeHave(sampleHave())
	f.Add(good[:len(good)-haveSumSize])
	f.Add([]byte(haveMagic))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 1<<20 {
			return
		}
		// As it is, and with a checksum that is right.
		decodeHave(body)
		b := withSum(body)
		h, err := decodeHave(b)
		if err != nil {
			return
		}
		if got := encodeHave(h); string(got) != string(b) {
			t.Errorf("decoded and encoded:\n%x\n%x", b, got)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	m := makeFake(1, 3*testSpan, testSpan).meta
	b, err := encodeMeta(&m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		if err := m.Validate(); err != nil {
			t.Errorf("decoded what is not valid: %v", err)
		}
		for i := range m.Spans() {
			if off, n := m.Span(i); off < 0 || n <= 0 || off+n > m.TarBytes {
				t.Fatalf("span %d is [%d, +%d) of %d", i, off, n, m.TarBytes)
			}
		}
		again, err := encodeMeta(&m)
		if err != nil {
			t.Fatal(err)
		}
		if m2, err := decodeMeta(again); err != nil || m2.TableDigest() != m.TableDigest() {
			t.Errorf("encoded and decoded: %v", err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"version":1,"owners":{"a":[]}}`))
	f.Add([]byte(`{"version":1,"blob":"sha256:00"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if owners, err := decodePins(b); err == nil && owners == nil {
			t.Error("pins without a map")
		}
		if r, err := decodeReason(b); err == nil && checkDigest(r.Blob) != nil {
			t.Error("reason without a blob")
		}
	})
}
