package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// What annotations say of the people who approve, and of doing without them.

// parseDeny reads how many of those who may approve must say no to end a
// request. One is the default.
func parseDeny(t *terms, value string) (err error) {
	t.Denials, err = parseCount(value, broker.MaxApprovers)
	return err
}

func parseExcludeTeam(t *terms, value string) error { return parseWord(&t.ExcludeTeam, value, "yes") }
func parseComment(t *terms, value string) error     { return parseWord(&t.Comment, value, "required") }
func parseSigned(t *terms, value string) error      { return parseWord(&t.Signed, value, "required") }

func parseLapseAfter(t *terms, value string) (err error) {
	t.LapseAfter, err = parseDuration(value)
	return err
}

// maxEscalations bounds how often more people are told.
const maxEscalations = 4

// parseEscalate reads "15m to oncall, 45m to managers".
func parseEscalate(t *terms, value string) error {
	for step := range strings.SplitSeq(value, ",") {
		words := strings.Fields(step)
		if len(words) != 3 || words[1] != "to" || !groupForm.MatchString(words[2]) {
			return fmt.Errorf("%q: write after how long which group is told, as in %q", step, "15m to oncall")
		}
		after, err := parseDuration(words[0])
		if err != nil {
			return err
		}
		t.Escalations = append(t.Escalations, broker.Escalation{After: after, Group: words[2]})
	}
	if len(t.Escalations) > maxEscalations {
		return fmt.Errorf("at most %d steps", maxEscalations)
	}
	return nil
}

// parseBreakGlass reads the group that must review every use.
func parseBreakGlass(t *terms, value string) error {
	if !groupForm.MatchString(value) {
		return fmt.Errorf("%q: name the group that reviews every use, as in %q", value, "security")
	}
	t.glass = value
	t.Review = []broker.ApprovalNeed{{Group: value, Count: 1}}
	return nil
}

func parseReviewWithin(t *terms, value string) (err error) {
	t.ReviewWithin, err = parseDuration(value)
	return err
}

// complete checks what annotations mean only together, and fills in what they
// leave to a default.
func (t *terms) complete() error {
	t.named()
	approves := len(t.Approvals) > 0
	switch {
	case approves && t.glass != "":
		return errors.New("@approval and @break_glass exclude each other: breaking the glass is doing without approval; write two permits")
	case !approves && (t.Denials > 0 || t.ExcludeTeam || t.Comment || t.LapseAfter > 0 || len(t.Escalations) > 0):
		return errors.New("@deny, @exclude_team, @comment, @lapse_after and @escalate stand beside @approval: without it they mean nothing")
	case t.Signed && !approves && t.glass == "":
		return errors.New("@signed stands beside @approval or @break_glass: without them it means nothing")
	case t.glass == "" && t.ReviewWithin > 0:
		return errors.New("@review_within stands beside @break_glass: without it it means nothing")
	case t.Denials > people(t.Approvals):
		return fmt.Errorf("@deny asks for %d, more than approve", t.Denials)
	}
	if approves && t.Denials == 0 {
		t.Denials = 1 // said, so that it wins over a permit that wants more
	}
	if t.glass != "" && t.ReviewWithin == 0 {
		t.ReviewWithin = defaultReview
	}
	return nil
}

// defaultReview is how long the use of a broken glass may go unreviewed.
const defaultReview = 24 * time.Hour

// people counts the places that approvers fill.
func people(needs []broker.ApprovalNeed) (n int) {
	for _, need := range needs {
		n += need.Count
	}
	return n
}
