package sources

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Documents gives each of the JSON documents that stand one after another to each. Of a
// damaged one it says where.
func Documents(b []byte, each func(json.RawMessage) error) error {
	for dec := json.NewDecoder(bytes.NewReader(b)); ; {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read JSON at byte %d: %w", dec.InputOffset(), err)
		}
		if err := each(raw); err != nil {
			return err
		}
	}
}
