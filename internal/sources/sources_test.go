package sources

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// TestGroupedMany: of more subjects than a record may have it has the first ones, and says
// how many it has not.
func TestGroupedMany(t *testing.T) {
	var g Grouped
	for i := range profile.MaxSubjects + 3 {
		s := g.Subject(fmt.Sprint(i), profile.Subject{Name: "app"})
		s.Runs = append(s.Runs, profile.Run{Begun: time.Now()})
	}
	g.Subject("none", profile.Subject{Name: "no runs"})
	r := g.Record(profile.SourceAttach)
	r.ID = profile.NewID(r.Begun)
	if _, err := profile.Encode(r); err != nil {
		t.Fatal(err)
	}
	if len(r.Subjects) != profile.MaxSubjects || r.Subjects[1].Name != "app #2" || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "3 more are left out") {
		t.Errorf("%d subjects, warnings %v", len(r.Subjects), r.Warnings)
	}
}
