package notify

import (
	"strings"
	"text/template"
	"time"

	"accessbroker.internal/broker"
)

// An enrolment is the content of the mail about a new passkey. It omits the name of
// the passkey, which the person who enrolled it chose.
type enrolment struct {
	Person, URL      string
	Enrolled, Counts string
}

// enrolled is the template of that mail. Operators can't change it, because it must
// explain how to object.
var enrolled = enrolmentText{template.Must(template.ParseFS(builtIn, "templates/passkey.txt"))}

type enrolmentText struct{ body *template.Template }

func (e enrolmentText) text(pages string, n *broker.Notice) (subject, body string, err error) {
	var b strings.Builder
	when := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z07:00") }
	err = e.body.Execute(&b, enrolment{plain(n.Person), pages + "/ui/passkeys", when(n.Created), when(n.Counts)})
	return "A new passkey can sign for you from " + when(n.Counts), strings.TrimSpace(b.String()), err
}
