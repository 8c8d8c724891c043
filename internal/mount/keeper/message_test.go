package keeper

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range []message{
		{kind: kindWelcome, value: 300}, {kind: kindLayer, text: "sha256:" + strings.Repeat("a", 64)}, {kind: kindGoodbye},
		{kind: kindRefused, text: strings.Repeat("x", maxTextBytes)}, {kind: kindSync, value: 1<<32 - 1},
	} {
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeMessage(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got, cmp.AllowUnexported(message{})); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		for cut := range b {
			if _, err := decodeMessage(b[:cut]); err == nil {
				t.Errorf("kind %d: no error for the first %d bytes", m.kind, cut)
			}
		}
		if _, err := decodeMessage(append(b, 0)); err == nil {
			t.Errorf("kind %d: no error for a byte too many", m.kind)
		}
	}
	if _, err := (message{kind: kindDrop, text: strings.Repeat("x", maxTextBytes+1)}).encode(); err == nil {
		t.Error("no error for a text too long")
	}
}

func FuzzMessage(f *testing.F) {
	b, _ := message{kind: kindLayer, text: "sha256:abc", value: 7}.encode()
	f.Add(b)
	f.Add([]byte("TK\x02\x05\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeMessage(again)
		if err != nil || got != m {
			t.Errorf("%+v became %+v, %v", m, got, err)
		}
	})
}
