package emit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// window is over how long rules look back. It is no longer than alertAfter, so that one
// slow start alone raises no alert: its rate is over before the alert is due.
const (
	window     = "10m"
	alertAfter = "10m"
)

// quantileOf asks for a quantile of a histogram, by labels. What there is no start of it
// leaves out: a comparison drops what is not a number.
func quantileOf(q, series, selector, window string, by ...string) string {
	return fmt.Sprintf("histogram_quantile(%s, sum by (%s) (rate(%s_bucket%s[%s])))", q, strings.Join(append(by, "le"), ", "), series, selector, window)
}

func meanOf(series, selector, window string, by ...string) string {
	labels := strings.Join(by, ", ")
	return fmt.Sprintf("sum by (%s) (rate(%s_sum%s[%s])) / sum by (%s) (rate(%s_count%s[%s]))", labels, series, selector, window, labels, series, selector, window)
}

// Rules returns Prometheus' rules: recordings, and alerts of services whose cold starts
// take longer than threshold.
func Rules(threshold time.Duration) ([]byte, error) {
	if threshold <= 0 {
		return nil, fmt.Errorf("threshold %v: it has to be more than 0", threshold)
	}
	slow := strconv.FormatFloat(threshold.Seconds(), 'f', -1, 64)
	var b strings.Builder
	b.WriteString("# Rules about cold starts, for the metrics of thaw's daemon and of thaw emit prometheus. Made by thaw emit rules.\n")
	b.WriteString("groups:\n  - name: coldstart-recordings\n    rules:\n")
	record := func(name, expr string) { fmt.Fprintf(&b, "      - record: %s\n        expr: %s\n", name, expr) }
	for _, q := range []struct{ name, value string }{{"p50", "0.5"}, {"p90", "0.9"}, {"p99", "0.99"}} {
		record("service:"+SeriesSeconds+":"+q.name, quantileOf(q.value, SeriesSeconds, "", window, labelService)+" >= 0")
	}
	record("service_phase:"+SeriesPhase+":mean", "("+meanOf(SeriesPhase, "", window, labelService, labelPhase)+") >= 0")
	record("service:"+SeriesPhase+":first_request_penalty_p99",
		quantileOf("0.99", SeriesPhase, fmt.Sprintf(`{%s="%s"}`, labelPhase, profile.PhaseFirstRequest), window, labelService)+" >= 0")
	fmt.Fprintf(&b, `
  - name: coldstart-alerts
    rules:
      - alert: ColdStartSlow
        expr: %s > %s
        for: %s
        labels: {severity: warning}
        annotations:
          summary: "{{ $labels.%s }}: one cold start in a hundred takes {{ $value | humanizeDuration }}"
          description: "p99 of its cold starts has been above %s s for %s: starts have been slow all that time, one alone is no alert. The slowest phase: topk(1, service_phase:%s:mean{%s=\"{{ $labels.%s }}\"})."

      - alert: ColdStartsFail
        expr: sum by (%s) (increase(%s[15m])) > 0
        labels: {severity: warning}
        annotations:
          summary: "{{ $labels.%s }}: cold starts failed"
`, quantileOf("0.99", SeriesSeconds, "", window, labelService), slow, alertAfter, labelService, slow, alertAfter, SeriesPhase, labelService, labelService,
		labelService, SeriesFailures, labelService)
	return []byte(b.String()), nil
}
