package notify

import (
	"strings"
	"text/template"
	"time"

	"accessbroker.internal/broker"
)

// An enrolment is what a person is told of a passkey of theirs. Its name is not
// in it: whoever enrolled it made that up.
type enrolment struct {
	Person, URL      string
	Enrolled, Counts string
}

// enrolled makes that mail. Operators don't word it: it has to say how to object.
var enrolled = enrolmentText{template.Must(template.ParseFS(builtIn, "templates/passkey.txt"))}

type enrolmentText struct{ body *template.Template }

func (e enrolmentText) text(pages string, n *broker.Notice) (subject, body string, err error) {
	var b strings.Builder
	when := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z07:00") }
	err = e.body.Execute(&b, enrolment{plain(n.Person), pages + "/ui/passkeys", when(n.Created), when(n.Counts)})
	return "A new passkey signs for you from " + when(n.Counts) + " on", strings.TrimSpace(b.String()), err
}
