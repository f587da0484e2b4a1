package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// stateForm is the form of the names that the operator gives to the states of tickets.
var stateForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// stateClosed is the state in which a ticket is no reason for access.
const stateClosed = "closed"

// parseTicketState reads "open", or another state that a tracker defines.
func parseTicketState(t *annotations, value string) error {
	switch {
	case value == stateClosed:
		return fmt.Errorf("%q: access never rests on a closed ticket: write %q", value, "open")
	case !stateForm.MatchString(value):
		return fmt.Errorf("%q: write one state, such as %q", value, "open")
	}
	t.TicketStates = []string{value}
	return nil
}

// parseTicketAssignee reads alternatives, such as "requester, accountable".
func parseTicketAssignee(t *annotations, value string) error {
	var words []string
	for word := range strings.SplitSeq(value, ",") {
		word = strings.TrimSpace(word)
		if word != broker.AssigneeRequester && word != broker.AssigneeAccountable {
			return fmt.Errorf("%q: write %q, %q or both with a comma", word, broker.AssigneeRequester, broker.AssigneeAccountable)
		}
		if slices.Contains(words, word) {
			return fmt.Errorf("%q appears twice: write it once", word)
		}
		words = append(words, word)
	}
	slices.Sort(words)
	t.TicketAssignees = []string{strings.Join(words, ", ")}
	return nil
}

func parseChangeWindow(t *annotations, value string) error {
	return parseWord(&t.ChangeWindow, value, "required")
}

// describeTerms returns the terms in the notation of annotations.
func describeTerms(t broker.TicketTerms) (lines []string) {
	for _, state := range t.TicketStates {
		lines = append(lines, "ticket_state: "+state)
	}
	for _, alternatives := range t.TicketAssignees {
		lines = append(lines, "ticket_assignee: "+alternatives)
	}
	if t.ChangeWindow {
		lines = append(lines, "change_window: required")
	}
	return lines
}
