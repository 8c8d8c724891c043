package testenv

import (
	"testing"
	"time"
)

func TestStopwatch(t *testing.T) {
	before := Starved()
	s := Start()
	if over, _ := s.Over(time.Hour); over {
		t.Error("an hour is over")
	}
	s.begun = s.begun.Add(-100 * time.Hour)
	if over, starved := s.Over(time.Hour); !over || starved > time.Hour {
		t.Errorf("100 hours are not over an hour, %v of them starved", starved)
	}
	if after := Starved(); after < before {
		t.Errorf("starved for %v, and then for %v", before, after)
	}
}
