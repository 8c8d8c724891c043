package main

import (
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/profile"
)

// overheadSubject has runs that listened at some times; negative: it failed.
func overheadSubject(name string, times ...float64) *profile.Subject {
	s := &profile.Subject{Name: name}
	for _, ms := range times {
		r := profile.Run{Events: []profile.Event{{Name: profile.EventReached, AtMs: ms}, {Name: profile.EventReady, AtMs: ms + 10}}}
		if ms < 0 {
			r = profile.Run{Error: "it failed"}
		}
		s.Runs = append(s.Runs, r)
	}
	return s
}

// TestPrintOverhead: what observing costs is by pairs, and shown only where it is.
func TestPrintOverhead(t *testing.T) {
	many := func(factor float64) (times []float64) {
		for i := range 30 {
			times = append(times, factor*(700+float64(i%7*3)))
		}
		return times
	}
	unobserved := overheadSubject("app unobserved", many(1)...)
	for _, tt := range []struct {
		observed *profile.Subject
		want     []string
	}{
		{overheadSubject("app", many(1.02)...), []string{"to listen     30", "1.020", "to ready", "Observing costs less than 5 % of the time to listen: +2.0 %, and 2.0 % at most with 95 % confidence."}},
		{overheadSubject("app", many(1.2)...), []string{"Observing costs more: +20.0 %, and it was to be less than 5 %"}},
		{overheadSubject("app", 600, 720, 700, 735, 800, 900), []string{"to listen      6", "is not shown: +", "More runs say more."}},
		{overheadSubject("app", 710, -1, 700, 720, 730), []string{"to listen      4", "is not shown: it takes 5 pairs"}},
		{overheadSubject("app"), []string{"to listen      0", "?", "is not shown: it takes 5 pairs"}},
	} {
		var b strings.Builder
		if err := printOverhead(&b, tt.observed, unobserved); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("no %q in %s", want, &b)
			}
		}
	}
}
