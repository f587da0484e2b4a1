package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"accessbroker.internal/broker"
)

// Bounds of what annotations may demand.
const (
	maxReason     = 500 // bytes
	maxPattern    = 200 // bytes
	maxLimitCount = 1_000_000
	maxDuration   = 30 * 24 * time.Hour
)

// The reserved terms of @approval.
const (
	groupOwner   = "owner" // the entitlement's owner
	groupManager = broker.GroupManager
)

var (
	idForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	groupForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// terms are what the annotations of one policy say.
type terms struct {
	id, reason string
	glass      string // the group of @break_glass: the permit is for nothing but breaking the glass
	broker.Obligations
}

// An annotation is one that may be written. The set is closed: a typo in
// @approval must never make an unconditional permit.
type annotation struct {
	parse    func(t *terms, value string) error
	onForbid bool
}

var annotations = map[string]annotation{
	"id":            {parseID, true},
	"reason":        {parseReason, true},
	"approval":      {parseApproval, false},
	"max_ttl":       {parseMaxTTL, false},
	"max_duration":  {parseMaxDuration, false},
	"justification": {parseJustification, false},
	"ticket":        {parseTicket, false},
	"limit":         {parseLimit, false},
	"max_active":    {parseMaxActive, false},
	"deny":          {parseDeny, false},
	"exclude_team":  {parseExcludeTeam, false},
	"comment":       {parseComment, false},
	"signed":        {parseSigned, false},
	"lapse_after":   {parseLapseAfter, false},
	"escalate":      {parseEscalate, false},
	"break_glass":   {parseBreakGlass, false},
	"review_within": {parseReviewWithin, false},
}

// parse takes one annotation in. Its error says what to write instead.
func (t *terms) parse(name, value string, permit bool) error {
	a, ok := annotations[name]
	switch {
	case !ok:
		return fmt.Errorf("unknown annotation: use one of %s", annotationNames())
	case !permit && !a.onForbid:
		return errors.New("an obligation on a forbid means nothing: only @id and @reason may stand there")
	}
	return a.parse(t, value)
}

func annotationNames() string {
	names := make([]string, 0, len(annotations))
	for name := range annotations {
		names = append(names, "@"+name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func parseID(t *terms, value string) error {
	if !idForm.MatchString(value) {
		return errors.New("an id is 1 to 64 of a-z, 0-9 and -, and does not begin with -")
	}
	t.id = value
	return nil
}

func parseReason(t *terms, value string) error {
	unprintable := strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) })
	if value == "" || len(value) > maxReason || unprintable {
		return fmt.Errorf("a reason is one line of printable text of at most %d bytes", maxReason)
	}
	t.reason = value
	return nil
}

// parseApproval reads "2 of dba, 1 of security".
func parseApproval(t *terms, value string) error {
	total := 0
	for term := range strings.SplitSeq(value, ",") {
		words := strings.Fields(term)
		if len(words) != 3 || words[1] != "of" || !groupForm.MatchString(words[2]) {
			return fmt.Errorf("%q: write how many of which group, as in %q", term, "2 of dba, 1 of security")
		}
		count, err := parseCount(words[0], broker.MaxApprovers)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(t.Approvals, func(n broker.ApprovalNeed) bool { return n.Group == words[2] }) {
			return fmt.Errorf("group %q stands twice: write it once, with the count you mean", words[2])
		}
		if total += count; total > broker.MaxApprovers {
			return fmt.Errorf("at most %d people may be asked for", broker.MaxApprovers)
		}
		t.Approvals = append(t.Approvals, broker.ApprovalNeed{Group: words[2], Count: count})
	}
	slices.SortFunc(t.Approvals, byGroup)
	return nil
}

func parseMaxTTL(t *terms, value string) (err error) {
	t.MaxTTL, err = parseDuration(value)
	return err
}

func parseMaxDuration(t *terms, value string) (err error) {
	t.MaxDuration, err = parseDuration(value)
	return err
}

func parseJustification(t *terms, value string) error {
	return parseWord(&t.Justification, value, "required")
}

// parseWord reads an annotation that has one value only.
func parseWord(flag *bool, value, word string) error {
	if value != word {
		return fmt.Errorf("%q: write %q or leave the annotation out", value, word)
	}
	*flag = true
	return nil
}

// parseTicket reads an RE2 pattern, which is compiled alone before it is
// anchored: "a)|(?:b" would otherwise close our group and escape the anchors.
func parseTicket(t *terms, value string) error {
	if value == "" || len(value) > maxPattern {
		return fmt.Errorf("a ticket pattern has 1 to %d bytes", maxPattern)
	}
	if _, err := regexp.Compile(value); err != nil {
		return fmt.Errorf("not a pattern (RE2): %w", err)
	}
	anchored := "^(?:" + value + ")$"
	form, err := regexp.Compile(anchored)
	if err != nil {
		return fmt.Errorf("not a pattern (RE2): %w", err)
	}
	if form.MatchString("") {
		return errors.New("the pattern matches nothing at all, so it demands no ticket: use + instead of *")
	}
	t.Tickets = []string{anchored}
	return nil
}

// parseLimit reads "20 per 1h".
func parseLimit(t *terms, value string) error {
	words := strings.Fields(value)
	if len(words) != 3 || words[1] != "per" {
		return fmt.Errorf("%q: write how many per how long, as in %q", value, "20 per 1h")
	}
	count, err := parseCount(words[0], maxLimitCount)
	if err != nil {
		return err
	}
	per, err := parseDuration(words[2])
	if err != nil {
		return err
	}
	t.Limits = []broker.Limit{{Count: count, Per: per}}
	return nil
}

func parseMaxActive(t *terms, value string) error {
	count, err := parseCount(value, maxLimitCount)
	if err != nil {
		return err
	}
	t.MaxActive = []broker.Limit{{Count: count}}
	return nil
}

// parseCount wants plain digits: no sign, no leading zero.
func parseCount(s string, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("%q: write a whole number from 1 to %d", s, most)
	}
	return n, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > maxDuration || d%time.Second != 0 {
		return 0, fmt.Errorf("%q: write a duration of whole seconds, from 1s to %s, as in %q", s, "720h", "15m")
	}
	return d, nil
}

// named puts the policy's id on its limits, so that each is counted apart.
func (t *terms) named() {
	for i := range t.Limits {
		t.Limits[i].Policy = t.id
	}
	for i := range t.MaxActive {
		t.MaxActive[i].Policy = t.id
	}
}
