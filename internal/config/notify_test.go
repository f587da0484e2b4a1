package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

const goodChannels = `notify:
  slack:
    dba: {token_file: secret, channel: C0123456789}
    ops: {webhook_file: hook.url}
  webhook:
    audit: {url: https://hooks.acme.test/broker, secret_files: [hook.secret]}
  mail:
    dba: {host: mail.acme.test, port: 587, from: broker@acme.test, to: [dba@acme.test], username: broker, password_file: secret}
`

func channelsDir(t *testing.T) string {
	t.Helper()
	dir := sealedDir(t)
	for name, text := range map[string]string{
		"secret": "sesame", "hook.secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hook.url": "https://hooks.slack.com/services/T/B/x",
		"texts/subject.txt": "{{.Entitlement}}", "broken/body.txt": "{{.Password}}",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestChannels(t *testing.T) {
	s, err := understand(channelsDir(t), goodConfig+goodChannels+"  people: mail:dba\n  templates: texts\n")
	if err != nil {
		t.Fatal(err)
	}
	names := s.Channels()
	slices.Sort(names)
	if !slices.Equal(names, []string{"mail:dba", "slack:dba", "slack:ops", "webhook:audit"}) {
		t.Errorf("got channels %v", names)
	}
	if people := s.Notifiers[broker.PeopleChannel]; people == nil || people != s.Notifiers["mail:dba"] {
		t.Errorf("the channel of people: got %v, want mail:dba", people)
	}
	if s, err = understand(channelsDir(t), goodConfig+goodChannels); err != nil || s.Notifiers[broker.PeopleChannel] != nil {
		t.Errorf("without people: got a channel of people, %v", err)
	}
	if s, err = understand(channelsDir(t), goodConfig); err != nil || s.Channels() != nil {
		t.Errorf("without notify: got channels %v, %v, want nil", s.Channels(), err)
	}
	if s, err = understand(channelsDir(t), goodConfig+"notify: {}\n"); err != nil || s.Channels() == nil {
		t.Errorf("with an empty notify: got channels %v, %v, want an empty list", s.Channels(), err)
	}
}

func TestBadChannels(t *testing.T) {
	dir := channelsDir(t)
	for name, test := range map[string]struct{ from, to, want string }{
		"no token":         {"token_file: secret, channel", "channel", "notify.slack.dba: set either a bot token and a channel id"},
		"no such file":     {"token_file: secret", "token_file: none", "notify.slack.dba.token_file: reading a secret"},
		"both":             {"webhook_file: hook.url", "webhook_file: hook.url, token_file: secret, channel: C1", "notify.slack.ops: set either a bot token"},
		"without TLS":      {"https://hooks.acme.test", "http://hooks.acme.test", "notify.webhook.audit: use an https URL"},
		"unsigned":         {"secret_files: [hook.secret]", "secret_files: []", "notify.webhook.audit: a webhook needs a secret"},
		"no secret":        {"[hook.secret]", "[secret]", "notify.webhook.audit.secret_files.0: a webhook secret is whsec_"},
		"mail without TLS": {"username: broker", "tls: none, username: broker", "notify.mail.dba: tls must be starttls or implicit"},
		"authorities":      {"username: broker", "ca_file: secret, username: broker", "notify.mail.dba.ca_file: reading authorities"},
		"a name":           {"    dba: {host", "    DBA: {host", `notify.mail.DBA: "DBA" is not a valid name`},
		"no mail channel":  {"notify:\n", "notify:\n  people: mail:ops\n", `notify.people: "mail:ops" is not a mail channel`},
		"people by Slack":  {"notify:\n", "notify:\n  people: slack:dba\n", `notify.people: "slack:dba" is not a mail channel`},
		"people by a name": {"notify:\n", "notify:\n  people: dba\n", `notify.people: "dba" is not a mail channel`},
		"templates":        {"notify:\n", "notify:\n  templates: none\n", "/none has neither subject.txt nor body.txt"},
		"a template":       {"notify:\n", "notify:\n  templates: broken\n", "notify.templates: body.txt:1: there is no field .Password"},
		"an unknown kind":  {"  mail:\n", "  fax:\n", `unknown key "fax"`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodChannels, test.from, test.to, 1)
			if text == goodChannels {
				t.Fatal("the change has no effect")
			}
			_, err := understand(dir, goodConfig+text)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "sesame") {
				t.Errorf("got %v\nwant %s", err, test.want)
			}
		})
	}
}
