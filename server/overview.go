package server

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/activity"
	"accessbroker.internal/server/plot"
	"accessbroker.internal/server/ui"
)

// The overview: what was requested, granted and denied in a period, who decided, and how
// long people and revocations took.

// A period is a span of time that the overview shows, divided into steps.
type period struct {
	Name, Title string
	step        time.Duration
	steps       int
	label       string // of a step, as a layout of package time
	tick        string // of the steps at which at is true
	at          func(time.Time) bool
}

var periods = []period{
	{"24h", "24 hours", time.Hour, 24, "2 Jan 15:04", "15:04", func(t time.Time) bool { return t.Hour()%6 == 0 }},
	{"7d", "7 days", 6 * time.Hour, 28, "2 Jan 15:04", "2 Jan", func(t time.Time) bool { return t.Hour() == 0 }},
	{"30d", "30 days", 24 * time.Hour, 30, "2 Jan 2006", "2 Jan", func(t time.Time) bool { return t.Unix()/86400%6 == 0 }},
}

// from returns the beginning of the period. The last step is the current one.
func (p period) from(now time.Time) time.Time {
	return now.UTC().Truncate(p.step).Add(-time.Duration(p.steps-1) * p.step)
}

type overviewPage struct {
	Periods   []period
	Period    period
	From      time.Time
	Waiting   int
	Lapsed    int
	Uncounted int
	Totals    *activity.Counts
	Deciders  []decider
	Voters    []voter // only for auditors
	MoreVotes int     // people past the listed ones
	MayAudit  bool

	Requests, Credentials, Wait, Lag plot.Chart
}

// A decider is a row of the table of who decided.
type decider struct {
	Name            string
	Granted, Denied int
	Share           int // of all decisions, in percent
}

// A voter is a person with their votes.
type voter struct {
	Name string
	activity.Votes
	Share int // of the most votes of one person, in percent
}

const mostVoters = 10

// overviewPage shows the overview to those who may see it.
func (s *Server) overviewPage(c *call) (reply, error) {
	if !c.maySeeOverview() {
		return reply{}, refuse(broker.ErrDenied, "policy does not permit you to see the overview: it needs the action audit or usage")
	}
	p := overviewPage{Periods: periods, Period: periods[0], Totals: &activity.Counts{}, MayAudit: c.mayAudit()}
	if name := c.r.URL.Query().Get("period"); name != "" {
		i := slices.IndexFunc(periods, func(p period) bool { return p.Name == name })
		if i < 0 {
			return reply{}, refuse(broker.ErrInvalidRequest, "period must be 24h, 7d or 30d")
		}
		p.Period = periods[i]
	}
	p.From = p.Period.from(c.now)
	report, err := s.cfg.History.Activity(c.r.Context(), p.From, c.now)
	if err != nil {
		return reply{}, err
	}
	p.fill(report)
	return c.page("overview", "Overview", "overview", p)
}

func (p *overviewPage) fill(report activity.Report) {
	p.Waiting, p.Uncounted = int(report.Waiting), int(report.Uncounted)
	for _, counts := range report.Hours {
		p.Totals.Merge(counts)
	}
	for _, n := range report.Lapsed {
		p.Lapsed += n
	}
	p.Requests, p.Credentials = p.overTime(report)
	p.Wait = waitChart(&p.Totals.Wait)
	p.Lag = lagChart(&p.Totals.Asked, &p.Totals.Due)
	p.decided()
	if p.MayAudit {
		p.voted()
	}
}

// overTime draws the charts whose horizontal axis is the time.
func (p *overviewPage) overTime(report activity.Report) (requests, credentials plot.Chart) {
	steps := make([]activity.Counts, p.Period.steps)
	lapsed := make([]int, p.Period.steps)
	step := func(hour int64) (int, bool) {
		i := int(time.Unix(hour*3600, 0).Sub(p.From) / p.Period.step)
		return i, i >= 0 && i < len(steps)
	}
	for hour, counts := range report.Hours {
		if i, ok := step(hour); ok {
			steps[i].Merge(counts)
		}
	}
	for hour, n := range report.Lapsed {
		if i, ok := step(hour); ok {
			lapsed[i] += n
		}
	}
	outcomes, issued := make([]plot.Column, len(steps)), make([]plot.Column, len(steps))
	for i := range steps {
		n, at := &steps[i], p.From.Add(time.Duration(i)*p.Period.step)
		column := plot.Column{Label: at.Format(p.Period.label)}
		if p.Period.at(at) {
			column.Tick = at.Format(p.Period.tick)
		}
		outcomes[i], issued[i] = column, column
		outcomes[i].Values = []int{n.Permitted, n.Approved, n.BreakGlass, n.AllDenied(), lapsed[i]}
		issued[i].Values = []int{n.Issued}
	}
	t := p.Totals
	requests = plot.Stacked("requests", "Requests by outcome",
		fmt.Sprintf("%s: %s granted, %s denied, %s lapsed without a decision.", counted(t.Requested, "request"), ui.Grouped(t.Granted()), ui.Grouped(t.AllDenied()), ui.Grouped(p.Lapsed)),
		[]plot.Series{{Name: "Granted by policy", Class: "series-1"}, {Name: "Granted by people", Class: "series-2"}, {Name: "Break-glass", Class: "series-3"}, {Name: "Denied", Class: "series-4"}, {Name: "Lapsed", Class: "series-5"}}, outcomes)
	credentials = plot.Stacked("credentials", "Credentials issued",
		fmt.Sprintf("%s; %s of credentials refused.", counted(t.Issued, "credential"), counted(t.Refused, "collection")),
		[]plot.Series{{Name: "Issued", Class: "series-2"}}, issued)
	return requests, credentials
}

// buckets returns the columns of histograms.
func buckets(series ...*activity.Durations) []plot.Column {
	columns := make([]plot.Column, len(activity.Bounds)+1)
	for i := range columns {
		if i < len(activity.Bounds) {
			columns[i].Label = "up to " + spoken(activity.Bounds[i])
		} else {
			columns[i].Label = "more"
		}
		if i%2 == 0 {
			columns[i].Tick = strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(columns[i].Label, "up to "), "in"), " ", "")
		}
		for _, d := range series {
			columns[i].Values = append(columns[i].Values, d.Buckets[i])
		}
	}
	return columns
}

func waitChart(d *activity.Durations) plot.Chart {
	return plot.Stacked("wait", "How long people took to decide", quantiles(d, "decision"), []plot.Series{{Name: "Decisions", Class: "series-2"}}, buckets(d))
}

func lagChart(asked, due *activity.Durations) plot.Chart {
	summary := fmt.Sprintf("From when a credential had to end until its issuer confirmed the end. On request: %s When due: %s", quantiles(asked, "revocation"), quantiles(due, "end"))
	return plot.Stacked("lag", "How long revocations took", summary, []plot.Series{{Name: "Revoked or returned", Class: "series-2"}, {Name: "Expired or replaced", Class: "series-5"}}, buckets(asked, due))
}

// quantiles describes a histogram in words.
func quantiles(d *activity.Durations, one string) string {
	if d.IsZero() {
		return "None."
	}
	return fmt.Sprintf("%s; half took at most %s, 95 %% at most %s, the longest %s.", counted(d.Count(), one), spoken(d.Within(.5)), spoken(d.Within(.95)), spoken(d.Longest))
}

// decided fills the table of who decided.
func (p *overviewPage) decided() {
	t := p.Totals
	p.Deciders = []decider{
		{Name: "Policy alone", Granted: t.Permitted, Denied: t.Denied},
		{Name: "People", Granted: t.Approved, Denied: t.Rejected},
		{Name: "The requester, by break-glass", Granted: t.BreakGlass},
	}
	all := t.Granted() + t.AllDenied()
	for i := range p.Deciders {
		d := &p.Deciders[i]
		d.Share = percent(d.Granted+d.Denied, all)
	}
}

// voted fills the table of people, those with the most votes first.
func (p *overviewPage) voted() {
	for name, v := range p.Totals.Votes {
		p.Voters = append(p.Voters, voter{Name: name, Votes: v})
	}
	slices.SortFunc(p.Voters, func(a, b voter) int {
		return cmp.Or(b.Total()-a.Total(), strings.Compare(a.Name, b.Name))
	})
	if len(p.Voters) > mostVoters {
		p.MoreVotes = len(p.Voters) - mostVoters
		p.Voters = p.Voters[:mostVoters]
	}
	for i := range p.Voters {
		p.Voters[i].Share = percent(p.Voters[i].Total(), p.Voters[0].Total())
	}
}

func percent(n, of int) int {
	if of <= 0 {
		return 0
	}
	return int(float64(n)/float64(of)*100 + .5)
}

// spoken formats a duration for people, with at most two units.
func spoken(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return units(d, time.Minute, "min", time.Second, "s")
	case d < 48*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "min")
	}
	return units(d, 24*time.Hour, "d", time.Hour, "h")
}

func units(d, large time.Duration, name string, small time.Duration, rest string) string {
	text := fmt.Sprintf("%d %s", d/large, name)
	if n := d % large / small; n > 0 {
		text += fmt.Sprintf(" %d %s", n, rest)
	}
	return text
}

// counted returns a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return ui.Grouped(n) + " " + noun + "s"
}
