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

// Limits of annotation values.
const (
	maxReason     = 500 // bytes
	maxPattern    = 200 // bytes
	maxLimitCount = 1_000_000
	maxDuration   = 30 * 24 * time.Hour
)

// Group names that are reserved for @approval.
const (
	groupOwner   = "owner"             // the entitlement's owner
	groupManager = broker.GroupManager // the requester's manager
)

var (
	idForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	groupForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// annotations holds the parsed annotations of one policy.
type annotations struct {
	id, reason string
	breakGlass string // the group of @break_glass; the permit applies only to break-glass requests
	broker.Obligations
}

// annotationParsers lists every annotation. An unknown one is an error, because
// a typo in @approval must not turn the permit into an unconditional one.
var annotationParsers = map[string]struct {
	parse    func(t *annotations, value string) error
	onForbid bool
}{
	"id":              {parseID, true},
	"reason":          {parseReason, true},
	"approval":        {parseApproval, false},
	"max_ttl":         {parseMaxTTL, false},
	"max_duration":    {parseMaxDuration, false},
	"justification":   {parseJustification, false},
	"ticket":          {parseTicket, false},
	"limit":           {parseLimit, false},
	"max_active":      {parseMaxActive, false},
	"deny":            {parseDeny, false},
	"exclude_team":    {parseExcludeTeam, false},
	"comment":         {parseComment, false},
	"silent_denial":   {parseSilentDenial, false},
	"signed":          {parseSigned, false},
	"lapse_after":     {parseLapseAfter, false},
	"escalate":        {parseEscalate, false},
	"break_glass":     {parseBreakGlass, false},
	"review_within":   {parseReviewWithin, false},
	"supplier":        {parseSupplier, false},
	"ticket_state":    {parseTicketState, false},
	"ticket_assignee": {parseTicketAssignee, false},
	"change_window":   {parseChangeWindow, false},
	"delegates":       {parseDelegates, false},
	"binding":         {parseBinding, false},
}

// parse reads one annotation. Its error states what to write instead.
func (t *annotations) parse(name, value string, permit bool) error {
	parser, ok := annotationParsers[name]
	switch {
	case !ok:
		return fmt.Errorf("unknown annotation: use one of %s", annotationNames())
	case !permit && !parser.onForbid:
		return errors.New("a forbid can't have obligations: use only @id and @reason, or write a permit")
	}
	return parser.parse(t, value)
}

// annotationNames returns all annotations for an error text, sorted.
func annotationNames() string {
	names := make([]string, 0, len(annotationParsers))
	for name := range annotationParsers {
		names = append(names, "@"+name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func parseID(t *annotations, value string) error {
	if !idForm.MatchString(value) {
		return errors.New("an id has 1 to 64 characters of a-z, 0-9 and -, and does not start with -")
	}
	t.id = value
	return nil
}

func parseReason(t *annotations, value string) error {
	unprintable := strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) })
	if value == "" || len(value) > maxReason || unprintable {
		return fmt.Errorf("a reason is one line of printable text with 1 to %d bytes", maxReason)
	}
	t.reason = value
	return nil
}

// parseApproval reads "2 of dba, 1 of security".
func parseApproval(t *annotations, value string) error {
	total := 0
	for term := range strings.SplitSeq(value, ",") {
		words := strings.Fields(term)
		if len(words) != 3 || words[1] != "of" || !groupForm.MatchString(words[2]) {
			return fmt.Errorf("%q: write a count and a group, such as %q", term, "2 of dba, 1 of security")
		}
		count, err := parseCount(words[0], broker.MaxApprovers)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(t.Approvals, func(n broker.ApprovalNeed) bool { return n.Group == words[2] }) {
			return fmt.Errorf("group %q appears twice: write it once, with the larger count", words[2])
		}
		if total += count; total > broker.MaxApprovers {
			return fmt.Errorf("the counts add up to more than %d approvers: lower them", broker.MaxApprovers)
		}
		t.Approvals = append(t.Approvals, broker.ApprovalNeed{Group: words[2], Count: count})
	}
	slices.SortFunc(t.Approvals, broker.ByGroup)
	return nil
}

func parseMaxTTL(t *annotations, value string) (err error) {
	t.MaxTTL, err = parseDuration(value)
	return err
}

func parseMaxDuration(t *annotations, value string) (err error) {
	t.MaxDuration, err = parseDuration(value)
	return err
}

func parseJustification(t *annotations, value string) error {
	return parseWord(&t.Justification, value, "required")
}

// parseWord reads an annotation with a single permitted value.
func parseWord(flag *bool, value, word string) error {
	if value != word {
		return fmt.Errorf("%q: write %q or remove the annotation", value, word)
	}
	*flag = true
	return nil
}

// notPattern states what is wrong with a regular expression.
func notPattern(err error) error {
	return fmt.Errorf("not a pattern (RE2): %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
}

// parseTicket reads an RE2 pattern and anchors it. It compiles the pattern alone
// first: "a)|(?:b" is no pattern, but would close the anchored group and match
// without the anchors.
func parseTicket(t *annotations, value string) error {
	if value == "" || len(value) > maxPattern {
		return fmt.Errorf("a ticket pattern has 1 to %d bytes", maxPattern)
	}
	if _, err := regexp.Compile(value); err != nil {
		return notPattern(err)
	}
	anchored := "^(?:" + value + ")$"
	form, err := regexp.Compile(anchored)
	if err != nil {
		return notPattern(err)
	}
	if form.MatchString("") {
		return errors.New("the pattern matches the empty string, so it requires no ticket: use + instead of *")
	}
	t.Tickets = []string{anchored}
	return nil
}

// parseLimit reads "20 per 1h".
func parseLimit(t *annotations, value string) error {
	words := strings.Fields(value)
	if len(words) != 3 || words[1] != "per" {
		return fmt.Errorf("%q: write a count and a duration, such as %q", value, "20 per 1h")
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

func parseMaxActive(t *annotations, value string) error {
	count, err := parseCount(value, maxLimitCount)
	if err != nil {
		return err
	}
	t.MaxActive = []broker.Limit{{Count: count}}
	return nil
}

// parseDelegates reads how many sub-agents may act below one another.
func parseDelegates(t *annotations, value string) (err error) {
	t.Delegates, err = parseCount(value, broker.MaxDelegates)
	return err
}

// parseCount reads an integer in plain digits: no sign, no leading zero.
func parseCount(s string, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("%q: write a whole number from 1 to %d", s, most)
	}
	return n, nil
}

// parseDuration reads a duration of whole seconds, because requests and leases have
// no finer times.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > maxDuration || d%time.Second != 0 {
		return 0, fmt.Errorf("%q: write a duration of whole seconds, from 1s to %s, such as %q", s, "720h", "15m")
	}
	return d, nil
}

// hasObligations reports whether the policy has any obligation.
func (t *annotations) hasObligations() bool {
	o := t.Obligations
	return o.Supplier.Required() || o.Binding != broker.BindingNone || len(o.Approvals)+len(o.Review)+len(o.Tickets)+len(o.TicketStates)+len(o.TicketAssignees)+len(o.Limits)+len(o.MaxActive)+len(o.Escalations)+o.Denials > 0 ||
		o.MaxTTL+o.MaxDuration+o.LapseAfter+o.ReviewWithin > 0 || o.Justification || o.ChangeWindow || o.ExcludeTeam || o.Comment || o.SilentDenial || o.Signed
}

// setPolicy sets the policy's id on its limits. The broker counts each policy's
// limits separately.
func (t *annotations) setPolicy() {
	for i := range t.Limits {
		t.Limits[i].Policy = t.id
	}
	for i := range t.MaxActive {
		t.MaxActive[i].Policy = t.id
	}
}

// parseDeny reads how many denials end a request. The default is 1.
func parseDeny(t *annotations, value string) (err error) {
	t.Denials, err = parseCount(value, broker.MaxApprovers)
	return err
}

func parseExcludeTeam(t *annotations, value string) error {
	return parseWord(&t.ExcludeTeam, value, "yes")
}
func parseComment(t *annotations, value string) error {
	return parseWord(&t.Comment, value, "required")
}
func parseSilentDenial(t *annotations, value string) error {
	return parseWord(&t.SilentDenial, value, "yes")
}
func parseSigned(t *annotations, value string) error { return parseWord(&t.Signed, value, "required") }

func parseLapseAfter(t *annotations, value string) (err error) {
	t.LapseAfter, err = parseDuration(value)
	return err
}

// maxEscalations bounds the steps of one @escalate.
const maxEscalations = 4

// parseEscalate reads "15m to oncall, 45m to managers".
func parseEscalate(t *annotations, value string) error {
	for step := range strings.SplitSeq(value, ",") {
		words := strings.Fields(step)
		if len(words) != 3 || words[1] != "to" || !groupForm.MatchString(words[2]) {
			return fmt.Errorf("%q: write a duration and a group to notify, such as %q", step, "15m to oncall")
		}
		after, err := parseDuration(words[0])
		if err != nil {
			return err
		}
		t.Escalations = append(t.Escalations, broker.Escalation{After: after, Group: words[2]})
	}
	if len(t.Escalations) > maxEscalations {
		return fmt.Errorf("more than %d steps: remove some", maxEscalations)
	}
	return nil
}

// parseBreakGlass reads the group that reviews every use.
func parseBreakGlass(t *annotations, value string) error {
	if !groupForm.MatchString(value) {
		return fmt.Errorf("%q: write the group that reviews every use, such as %q", value, "security")
	}
	t.breakGlass = value
	t.Review = []broker.ApprovalNeed{{Group: value, Count: 1}}
	return nil
}

func parseReviewWithin(t *annotations, value string) (err error) {
	t.ReviewWithin, err = parseDuration(value)
	return err
}

// maxAssessed is the greatest age of an assessment that a policy may allow.
const maxAssessed = 10 * 366 * 24 * time.Hour

// parseSupplier reads "assessed_within=365d, max_risk=medium". Each part may be left out,
// but not both.
func parseSupplier(t *annotations, value string) error {
	seen := map[string]bool{}
	for part := range strings.SplitSeq(value, ",") {
		name, text, ok := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch {
		case !ok || seen[name]:
			err = fmt.Errorf("%q: write each condition once, such as %q", part, "assessed_within=365d, max_risk=medium")
		case name == "assessed_within":
			t.Supplier.AssessedWithin, err = parseDays(text)
		case name == "max_risk":
			if t.Supplier.MaxRisk, err = broker.ParseTier(text); err == nil && t.Supplier.MaxRisk == broker.TierCritical {
				err = errors.New("max_risk=critical allows every risk: write a lower one or remove it")
			}
		default:
			err = fmt.Errorf("there is no condition %q: use assessed_within and max_risk", name)
		}
		if err != nil {
			return err
		}
		seen[name] = true
	}
	return nil
}

// parseDays reads a duration with days, such as "365d", or one of whole seconds.
func parseDays(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = parseCount(days, int(maxAssessed/(24*time.Hour))); err == nil {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d < time.Second || d > maxAssessed || d%time.Second != 0 {
		return 0, fmt.Errorf("%q: write a number of days, such as %q, or a duration of whole seconds, such as %q", s, "365d", "12h")
	}
	return d, nil
}

// parseBinding reads "dpop or mtls".
func parseBinding(t *annotations, value string) (err error) {
	if value == broker.BindingNone.String() {
		return errors.New("none demands nothing: write mtls, dpop or \"dpop or mtls\", or remove the annotation")
	}
	t.Binding, err = broker.ParseBinding(value)
	return err
}

// complete checks how the annotations of one policy combine and sets defaults.
func (t *annotations) complete() error {
	t.setPolicy()
	approves := len(t.Approvals) > 0
	switch {
	case approves && t.breakGlass != "":
		return errors.New("@approval and @break_glass exclude each other, because break-glass access needs no approval: write two permits")
	case !approves && (t.Denials > 0 || t.ExcludeTeam || t.Comment || t.SilentDenial || t.LapseAfter > 0 && !t.Supplier.Required() || len(t.Escalations) > 0):
		return errors.New("@deny, @exclude_team, @comment, @silent_denial, @lapse_after and @escalate have no effect without @approval: add @approval or remove them")
	case t.Signed && !approves && t.breakGlass == "":
		return errors.New("@signed has no effect without @approval or @break_glass: add one of them or remove @signed")
	case t.breakGlass == "" && t.ReviewWithin > 0:
		return errors.New("@review_within has no effect without @break_glass: add @break_glass or remove @review_within")
	case t.Denials > approvers(t.Approvals):
		return fmt.Errorf("@deny is %d, but @approval requires only %d: lower @deny", t.Denials, approvers(t.Approvals))
	}
	if approves && t.Denials == 0 {
		t.Denials = 1 // set, so that it is stricter than a larger @deny on another permit
	}
	if t.breakGlass != "" && t.ReviewWithin == 0 {
		t.ReviewWithin = defaultReview
	}
	return nil
}

// defaultReview is how soon a break-glass use must be reviewed.
const defaultReview = 24 * time.Hour

// approvers returns how many approvers needs add up to.
func approvers(needs []broker.ApprovalNeed) (n int) {
	for _, need := range needs {
		n += need.Count
	}
	return n
}
