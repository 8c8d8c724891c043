package layertar_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/layertar"
	"github.com/thaw-project/thaw/internal/layertar/layertartest"
)

func TestReadAllAt(t *testing.T) {
	for i, layer := range layertartest.Everything() {
		want, err := layertar.ReadAll(bytes.NewReader(layer), layertar.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := layertar.ReadAllAt(bytes.NewReader(layer), int64(len(layer)), layertar.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("layer %d: entries differ (-stream +at):\n%s", i, diff)
		}
		for _, cut := range []int64{1, 512, 700, int64(len(layer)) / 2} {
			short := layer[:int64(len(layer))-cut]
			_, wantErr := layertar.ReadAll(bytes.NewReader(short), layertar.Limits{})
			_, err := layertar.ReadAllAt(bytes.NewReader(short), int64(len(short)), layertar.Limits{})
			if (err == nil) != (wantErr == nil) {
				t.Errorf("layer %d without %d bytes: %v, streamed: %v", i, cut, err, wantErr)
			}
		}
	}
}
