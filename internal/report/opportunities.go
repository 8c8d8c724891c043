package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/thaw-project/thaw/internal/profile"
)

// opportunity is time or bytes of a start that need not be, by what was measured.
type opportunity struct {
	ID         string  `json:"id"`
	Title      string  `json:"title"`
	Phase      string  `json:"phase,omitempty"`
	SavedMs    float64 `json:"saved_ms"`
	UpTo       bool    `json:"up_to"` // SavedMs is the most that it can be
	SavedBytes int64   `json:"saved_bytes"`
	Evidence   string  `json:"evidence"`
	Do         string  `json:"do"`
	Confidence string  `json:"confidence"`
	// Counts says that SavedMs is part of the start, and of what can go: no other
	// opportunity has the same milliseconds.
	Counts bool `json:"counts"`
}

// Below these nothing is said.
const (
	leastMs    = 5.
	leastShare = .02
)

// lookedFor is an opportunity that there may be, and what is said where it is none.
type lookedFor struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

var looked = []lookedFor{
	{"pull", "Bringing the image takes no part of the start that counts"},
	{"lazy-wait", "No read waits long for bytes that are not here"},
	{"packages", "No library that is loaded takes a large part of the start"},
	{"idle", "Bootstrap does not wait for something else"},
	{"throttled", "The CPU limit does not slow the start"},
	{"first-request", "The first request is about as quick as later ones"},
	{"health", "Nobody waits long for a health check"},
	{"unread", "Most of the image's bytes are read"},
}

// opportunities are sorted by what they save. What was not measured gives none.
func opportunities(v *subjectView, s *profile.Subject, r *profile.Record) []opportunity {
	if v.Median == nil {
		return []opportunity{}
	}
	total := 0.
	if v.Total != nil {
		total = v.Total.P50
	}
	all := []opportunity{}
	add := func(o *opportunity) {
		if o == nil || o.SavedMs < max(leastMs, leastShare*total) && o.SavedBytes == 0 {
			return
		}
		o.SavedMs = round(o.SavedMs)
		if o.SavedMs < leastMs {
			o.Counts = false
		}
		all = append(all, *o)
	}
	add(pullOpportunity(v, s, r))
	add(waitOpportunity(v))
	add(packagesOpportunity(v))
	add(idleOpportunity(v))
	add(throttledOpportunity(v))
	for i := range v.Routes {
		if i < 5 {
			add(routeOpportunity(&v.Routes[i]))
		}
	}
	add(healthOpportunity(v))
	add(unreadOpportunity(v, s))
	slices.SortStableFunc(all, func(a, b opportunity) int {
		return cmp.Or(cmp.Compare(b.SavedMs, a.SavedMs), cmp.Compare(b.SavedBytes, a.SavedBytes))
	})
	return all
}

// lazyMode tells modes that bring bytes when they are read.
func lazyMode(mode string) bool {
	return strings.HasPrefix(mode, "lazy") || mode == "fanotify" || mode == "fuse"
}

// pullOpportunity is what a lazy start does not wait for. Another subject of the
// record, of the same image, is better evidence than the share of its bytes.
func pullOpportunity(v *subjectView, s *profile.Subject, r *profile.Record) *opportunity {
	pull, ok := v.Median.ms(profile.PhasePull)
	if !ok || lazyMode(s.Mode) || s.Cold != "" && s.Cold != profile.ColdL0 {
		return nil
	}
	o := &opportunity{ID: "pull", Title: "Start before the image is here", Phase: profile.PhasePull, Counts: true,
		Do: "Start it lazily: thaw index build --push IMAGE once, thaw optimize for a start-up bundle; bytes come when they are read."}
	for i := range r.Subjects {
		other := &r.Subjects[i]
		if !lazyMode(other.Mode) || other.Image != s.Image || other == s {
			continue
		}
		var pulls, waits []float64
		for j := range other.Runs {
			if run := newRunView(&other.Runs[j]); run.Error == "" {
				wait, known := lazyWait(&run)
				if ms, ok := run.ms(profile.PhasePull); ok && known {
					pulls, waits = append(pulls, ms), append(waits, wait)
				}
			}
		}
		if len(pulls) == 0 {
			continue
		}
		if saved := pull - median(pulls) - median(waits); saved > o.SavedMs {
			o.SavedMs, o.Confidence = saved, profile.Measured
			o.Evidence = fmt.Sprintf("%s pulls for %s and waits %s for bytes later; this one pulls for %s.", other.Name, showMs(median(pulls)), showMs(median(waits)), showMs(pull))
		}
	}
	if o.Confidence != "" {
		return o
	}
	needed := int64(0)
	if v.Map != nil {
		needed = v.Map.NeededBytes
	}
	if needed <= 0 || v.ImageBytes <= needed {
		o.UpTo, o.SavedMs, o.Confidence = true, pull, profile.Estimated
		o.Evidence = fmt.Sprintf("The pull takes %s. How much of the image the start reads is not known here.", showMs(pull))
		o.Counts = false
		return o
	}
	o.SavedMs, o.SavedBytes, o.Confidence = pull*(1-float64(needed)/float64(v.ImageBytes)), v.ImageBytes-needed, profile.Estimated
	o.Evidence = fmt.Sprintf("The start reads files of about %s of %s compressed (%s); the pull takes %s, taken to grow with its bytes.", showBytes(needed), showBytes(v.ImageBytes),
		percent(float64(needed), float64(v.ImageBytes)), showMs(pull))
	return o
}

// lazyWait is how long reads waited, of the phases that make up a start; false if that
// is not known of any.
func lazyWait(r *runView) (sum float64, known bool) {
	for _, name := range profile.Phases[:profile.StartPhases] {
		if p := r.phase(name); p != nil && p.Lazy != nil {
			sum, known = sum+*p.Lazy, true
		}
	}
	return sum, known
}

func waitOpportunity(v *subjectView) *opportunity {
	wait, _ := lazyWait(v.Median)
	if wait <= 0 {
		return nil
	}
	var where []string
	for _, name := range profile.Phases[:profile.StartPhases] {
		if p := v.Median.phase(name); p != nil && p.Lazy != nil && *p.Lazy >= 1 {
			where = append(where, fmt.Sprintf("%s in %s", showMs(*p.Lazy), lower(label(name))))
		}
	}
	o := &opportunity{ID: "lazy-wait", Title: "Have the bytes before they are read", SavedMs: wait, UpTo: true, Confidence: profile.Measured, Counts: true,
		Evidence: "Reads waited for bytes that were not here: " + strings.Join(where, ", ") + ".",
		Do:       "A start-up bundle (thaw optimize --push) streams in what the start reads, in its order; a registry or cache nearby makes the rest shorter."}
	if strings.Contains(v.Mode, "bundle") {
		o.Do = "It has a start-up bundle already: record it anew if the program changed; a registry or cache nearby, or a smaller image, is what is left."
	}
	return o
}

// optional tells a library of a language, which a program may load later, from programs,
// shared libraries and a language's own.
func optional(name string) bool {
	kind, _, ok := strings.Cut(name, ":")
	return ok && kind != "lib" && kind != "bin" && !strings.HasSuffix(name, ":stdlib")
}

func packagesOpportunity(v *subjectView) *opportunity {
	load := v.Median.phase(profile.PhaseDependencyLoad)
	if load == nil || load.Ms == nil {
		return nil
	}
	var names []string
	var sum float64
	var bytes int64
	for _, p := range v.Packages {
		if p.Phase != profile.PhaseDependencyLoad || !optional(p.Name) || len(names) == 3 {
			continue
		}
		if p.Ms < max(leastMs, leastShare**load.Ms) {
			break
		}
		names = append(names, fmt.Sprintf("%s %s (%s, %d files)", strings.TrimPrefix(p.Name[strings.IndexByte(p.Name, ':')+1:], "/"), showMs(p.Ms), showBytes(p.Bytes), p.Files))
		sum += p.Ms
		bytes += p.Bytes
	}
	if len(names) == 0 {
		return nil
	}
	lazy := 0. // counted by waitOpportunity
	if load.Lazy != nil && *load.Ms > 0 {
		lazy = *load.Lazy * min(sum / *load.Ms, 1)
	}
	return &opportunity{ID: "packages", Title: "Load fewer libraries before listening", Phase: profile.PhaseDependencyLoad, SavedMs: min(sum-lazy, *load.Ms), UpTo: true, SavedBytes: bytes,
		Confidence: profile.Estimated, Counts: true, Evidence: "The costliest: " + strings.Join(names, "; ") + ". A library's time is that from its first file to the next library's, so one that is needed by another has its share in it.",
		Do: "Import what the first requests do not need when it is first used (the first requests below show what that moves), or use a lighter one."}
}

// idleOpportunity is a bootstrap in which neither CPU nor files are used.
func idleOpportunity(v *subjectView) *opportunity {
	p := v.Median.phase(profile.PhaseBootstrap)
	if p == nil || p.Ms == nil || p.CPU == nil {
		return nil
	}
	idle := *p.Ms - *p.CPU
	if p.Lazy != nil {
		idle -= *p.Lazy
	}
	if idle < *p.Ms/4 {
		return nil
	}
	return &opportunity{ID: "idle", Title: "Do not wait during bootstrap", Phase: p.Name, SavedMs: idle, UpTo: true, Confidence: profile.Estimated, Counts: true,
		Evidence: fmt.Sprintf("Of %s of bootstrap the container used the CPU for %s and waited %s for bytes: the rest it waited for something else.", showMs(*p.Ms), showMs(*p.CPU), showMs(*p.Ms-*p.CPU-idle)),
		Do:       "Look for connections, look-ups and sleeps before it listens: do them at the same time, or after."}
}

func throttledOpportunity(v *subjectView) *opportunity {
	if v.Cost == nil || v.Cost.ThrottledMs == 0 {
		return nil
	}
	return &opportunity{ID: "throttled", Title: "Give the start more CPU", SavedMs: float64(v.Cost.ThrottledMs), UpTo: true, Confidence: profile.Measured,
		Evidence: fmt.Sprintf("The kernel held the container back for %s by its CPU limit until it was ready (summed over CPUs).", showMs(float64(v.Cost.ThrottledMs))),
		Do:       "Raise the CPU limit, at least for the start."}
}

func routeOpportunity(r *routeView) *opportunity {
	if !r.Known || r.Penalty < 20 || r.First < 2*r.Steady {
		return nil
	}
	o := &opportunity{ID: "first-request", Title: "First " + r.Route, Phase: profile.PhaseFirstRequest, SavedMs: r.Penalty, Confidence: profile.Measured,
		Evidence: fmt.Sprintf("The first takes %s, later ones %s.", showMs(r.First), showMs(r.Steady)),
		Do:       "Send such a request before it says that it is ready, or load what it needs earlier: a user pays for it now. It is no part of the time to ready."}
	if len(r.N) > 0 && r.N[0].N == 1 && r.N[0].Files > 0 {
		o.Evidence = fmt.Sprintf("The first takes %s, later ones %s: it opens %.0f files (%s) for the first time and waits %s for their bytes.", showMs(r.First), showMs(r.Steady),
			r.N[0].Files, showBytes(int64(r.N[0].Bytes)), showMs(r.N[0].Wait))
	}
	return o
}

// healthOpportunity is the wait that the shortest interval would not have.
func healthOpportunity(v *subjectView) *opportunity {
	wait, ok := healthWait(v)
	if !ok || v.Health == nil || v.Health.Interval == 0 {
		return nil
	}
	const quick = 1000. // milliseconds; half of it is what is waited on average
	if v.Health.Interval <= quick {
		return nil
	}
	return &opportunity{ID: "health", Title: "Check its health more often while it starts", Phase: profile.PhaseHealthContainer, SavedMs: wait - quick/2, UpTo: true, Confidence: profile.Computed,
		Evidence: fmt.Sprintf("It is ready, and for %s nobody knows: the check comes every %s.", showMs(wait), showMs(v.Health.Interval)),
		Do:       "A shorter interval, with a start period so that slow starts are not given up; the health check below shows what that comes to, and thaw health --tune writes it."}
}

// unreadOpportunity has no milliseconds: of a lazy start they cost none, and of an
// eager one the pull has them.
func unreadOpportunity(v *subjectView, s *profile.Subject) *opportunity {
	if v.Map == nil || v.Map.UnreadBytes < 1e6 {
		return nil
	}
	var dirs []string
	for _, d := range v.Map.unreadMost(3) {
		dirs = append(dirs, fmt.Sprintf("%s (%s)", d.Name, showBytes(d.Bytes)))
	}
	all := v.Map.UnreadBytes + v.Map.NeededBytes + v.Map.LaterBytes
	return &opportunity{ID: "unread", Title: "Leave out what is never read", SavedBytes: v.Map.UnreadBytes, Confidence: profile.Measured,
		Evidence: fmt.Sprintf("%s of the image's files, compressed, were read in no run. Most of them: %s.", percent(float64(v.Map.UnreadBytes), float64(all)), strings.Join(dirs, ", ")),
		Do:       "Other routes may need them: the map below shows which they are. A lazy start does not wait for them; pulls, disks and scanners do."}
}
