package checker

import (
	"fmt"
	"time"

	"accessbroker.internal/audit"
)

// Rules are the bounds of the policies of a run, by entitlement.
type Rules map[string]Bounds

// Bounds are what one holder may have of an entitlement.
type Bounds struct {
	Limit     int           // credentials issued in any period of length Per; zero: no limit
	Per       time.Duration // longer than a run
	MaxActive int           // credentials at a time; zero: no limit
	Approvals int           // people who must approve; zero: none
}

// An Evidence is what the judges judge.
type Evidence struct {
	*History
	Log   *Log
	Rules Rules

	// Skew is by how much a clock of the run may be off another one's.
	Skew time.Duration
}

// A Finding is a violation that a judge found.
type Finding struct {
	Judge string `json:"judge"`
	What  string `json:"what"`
}

func (f Finding) String() string { return f.Judge + ": " + f.What }

// A judge returns what contradicts one property of the broker.
type judge struct {
	name  string
	judge func(*Evidence, *court)
}

// judges are all judges.
var judges = []judge{
	{"the log verifies and continues every checkpoint", judgeLog},
	{"no credential without a record", judgeRecorded},
	{"no acknowledged write is lost", judgeAcknowledged},
	{"no refused write happened", judgeRefused},
	{"no write happens twice", judgeRepeated},
	{"the order of the log is the order of the answers", judgeOrder},
	{"no token is accepted after its end", judgeAccepted},
	{"nothing is issued to a blocked holder", judgeBlocked},
	{"nothing is issued while clocks differ", judgeClock},
	{"limits hold", judgeLimits},
	{"max_active holds", judgeActive},
	{"no approval counts twice", judgeApprovals},
	{"a request has one final state", judgeFinal},
	{"every lease is owned", judgeOwned},
	{"nothing works upstream after its end", judgeUpstream},
}

// A court collects the findings of one judge.
type court struct {
	name     string
	findings []Finding
	more     int
}

// maxFindings bounds the findings of one judge.
const maxFindings = 20

func (c *court) find(format string, args ...any) {
	if len(c.findings) == maxFindings {
		c.more++
		return
	}
	c.findings = append(c.findings, Finding{c.name, fmt.Sprintf(format, args...)})
}

// Judge returns all violations.
func Judge(e *Evidence) (all []Finding) {
	for _, j := range judges {
		c := &court{name: j.name}
		j.judge(e, c)
		if all = append(all, c.findings...); c.more > 0 {
			all = append(all, Finding{j.name, fmt.Sprintf("and %d more", c.more)})
		}
	}
	return all
}

// name describes an operation in a finding.
func (o *Operation) name() string {
	return fmt.Sprintf("%s of %s at replica %d, from %s to %s (trace %s)", o.Kind, o.Client, o.Replica, o.Start.Format(audit.TimeFormat), o.End.Format(audit.TimeFormat), o.Trace)
}

// position describes a record in a finding.
func (l *Log) position(i int) string {
	return fmt.Sprintf("record %d (%s, %s)", i, l.Records[i].Kind, l.Records[i].Time.Format(audit.TimeFormat))
}

func judgeLog(e *Evidence, c *court) {
	for _, p := range e.Log.Problems {
		c.find("%s", p)
	}
}
