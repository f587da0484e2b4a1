package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A need is how many people of a group have to speak.
type need struct {
	count int
	group string
}

// Bounds of what is remembered of one request, far above what policies want:
// whoever forges a log chooses these numbers.
const (
	maxPlaces = 1024
	maxVoices = 256
)

// parseNeeds reads "2 of dba", as decisions say it. It says false if it can't.
func parseNeeds(texts []string) (needs []need, ok bool) {
	places := 0
	for _, text := range texts {
		number, group, found := strings.Cut(text, " of ")
		n, err := strconv.Atoi(number)
		if !found || err != nil || n < 1 || n > maxPlaces || group == "" {
			return nil, false
		}
		needs, places = append(needs, need{n, group}), places+n
	}
	return needs, places <= maxPlaces
}

// A voice is what one person said of a request.
type voice struct {
	person        string
	groups        []string
	approves      bool
	signed        bool // by a passkey that counts
	scopes        []string
	ttl, duration time.Duration // narrowed to; zero: as asked
}

// people are those who have to speak of a request, and those who did.
type people struct {
	needs, review []need
	signed        bool     // what they say counts with a signature only
	barred        []string // who may not speak: who asked, and who answers for it
	said          []voice
	left          []string // the scopes that those who approved left of the request
	verdicts      []voice
	closed        bool // the review
}

// add takes in what a person says; who spoke before has nothing to say, but
// that a yes may become a no.
func add(said []voice, v voice) ([]voice, string) {
	i := slices.IndexFunc(said, func(u voice) bool { return u.person == v.person })
	switch {
	case i >= 0 && said[i].approves && !v.approves:
		said = slices.Delete(said, i, i+1)
	case i >= 0:
		return said, "the same person said so before"
	case len(said) == maxVoices:
		return said, fmt.Sprintf("more than %d people speak of one request", maxVoices)
	}
	return append(said, v), ""
}

// lacking says what is missing to the approvals that are demanded, or nothing.
func (p *people) lacking(needs []need, signed bool) string {
	if len(needs) == 0 {
		return ""
	}
	var yes []voice
	if p != nil {
		yes = slices.DeleteFunc(slices.Clone(p.said), func(v voice) bool { return !v.approves })
	}
	return missing("approved", needs, yes, signed)
}

// missing says which of the needs the voices leave open, or nothing.
func missing(done string, needs []need, voices []voice, signed bool) string {
	how := ""
	if signed {
		how = ", by signatures that hold"
		voices = slices.DeleteFunc(slices.Clone(voices), func(v voice) bool { return !v.signed })
	}
	have, full := seat(needs, voices)
	if full {
		return ""
	}
	return fmt.Sprintf("policy wants it %s by %s%s, and the log has %s", done, needTexts(needs, nil), how, needTexts(needs, have))
}

// needTexts names needs, as many as there are of each, or as have spoken.
func needTexts(needs []need, have []int) string {
	var texts []string
	for i, n := range needs {
		if have != nil {
			n.count = have[i]
		}
		texts = append(texts, fmt.Sprintf("%d of %s", n.count, n.group))
	}
	return strings.Join(texts, ", ")
}

// seat says how many of each need the voices fill, and whether all are.
func seat(needs []need, voices []voice) (have []int, full bool) {
	counts := make([]int, len(needs))
	for i, n := range needs {
		counts[i] = n.count
	}
	return audit.AssignApprovers(counts, len(voices), func(v, of int) bool { return slices.Contains(voices[v].groups, needs[of].group) })
}
