package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
)

// notifyFile is how people are told: channels by kind and name. groups.yaml
// names them "slack:dba".
type notifyFile struct {
	Templates string                 `yaml:"templates"` // folder with subject.txt, body.txt or both
	Slack     map[string]slackFile   `yaml:"slack"`
	Webhook   map[string]webhookFile `yaml:"webhook"`
	Mail      map[string]mailFile    `yaml:"mail"`
	People    plain                  `yaml:"people"` // "mail:NAME": by what people are told of what concerns them alone
}

type slackFile struct {
	TokenFile    string `yaml:"token_file"`
	Channel      string `yaml:"channel"`
	WebhookFile  string `yaml:"webhook_file"` // holds a URL, which is a secret
	API          plain  `yaml:"api"`
	AllowPrivate bool   `yaml:"allow_private"`
}

type webhookFile struct {
	URL          plain    `yaml:"url"`
	SecretFiles  []string `yaml:"secret_files"`
	CAFile       string   `yaml:"ca_file"`
	AllowPrivate bool     `yaml:"allow_private"`
}

type mailFile struct {
	Host         string  `yaml:"host"`
	Port         int     `yaml:"port"`
	From         plain   `yaml:"from"`
	To           []plain `yaml:"to"`
	Username     string  `yaml:"username"`
	PasswordFile string  `yaml:"password_file"`
	TLS          string  `yaml:"tls"`
	CAFile       string  `yaml:"ca_file"`
	AllowPrivate bool    `yaml:"allow_private"`
}

// notify makes the channels. None of them is called yet.
func (c *checker) notify() {
	f := c.d.file.Notify
	if f == nil {
		return
	}
	texts := c.templates("notify/templates", f.Templates)
	pages := c.cfg.UIURL.String()
	c.cfg.Notifiers = map[string]notify.Notifier{}
	for _, name := range slices.Sorted(maps.Keys(f.Slack)) {
		at, s := "notify/slack/"+name, f.Slack[name]
		made, err := notify.NewSlack(notify.SlackConfig{
			Pages: pages, Token: c.secret(at+"/token_file", s.TokenFile), Channel: s.Channel, Webhook: c.secret(at+"/webhook_file", s.WebhookFile),
			API: string(s.API), AllowPrivate: s.AllowPrivate, Templates: texts,
		})
		c.channel(at, "slack:"+name, made, err)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Webhook)) {
		at, w := "notify/webhook/"+name, f.Webhook[name]
		cfg := notify.WebhookConfig{Pages: pages, URL: string(w.URL), AllowPrivate: w.AllowPrivate, Roots: c.roots(at+"/ca_file", w.CAFile)}
		for i, path := range w.SecretFiles {
			key := fmt.Sprintf("%s/secret_files/%d", at, i)
			secret, err := notify.Secret(c.secret(key, path))
			if err != nil {
				c.bad(key, "%v", err)
			}
			cfg.Secrets = append(cfg.Secrets, secret)
		}
		made, err := notify.NewWebhook(cfg)
		c.channel(at, "webhook:"+name, made, err)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Mail)) {
		at, m := "notify/mail/"+name, f.Mail[name]
		made, err := notify.NewMail(notify.MailConfig{
			Pages: pages, Host: m.Host, Port: m.Port, From: string(m.From), To: toStrings(m.To), Username: m.Username,
			Password: c.secret(at+"/password_file", m.PasswordFile), TLS: cmp.Or(m.TLS, "starttls"), Roots: c.roots(at+"/ca_file", m.CAFile),
			AllowPrivate: m.AllowPrivate, Templates: texts,
		})
		c.channel(at, "mail:"+name, made, err)
	}
	if people := string(f.People); people != "" {
		if _, found := f.Mail[strings.TrimPrefix(people, "mail:")]; !found || !strings.HasPrefix(people, "mail:") {
			c.bad("notify/people", "%q is no mail channel: name one, as in mail:NAME", people)
			return
		}
		c.cfg.Notifiers[broker.PeopleChannel] = c.cfg.Notifiers[people]
	}
}

func (c *checker) channel(key, name string, made notify.Notifier, err error) {
	_, short, _ := strings.Cut(name, ":")
	c.name(key, short)
	if err != nil {
		c.bad(key, "%v", err)
	}
	c.cfg.Notifiers[name] = made
}

// templates reads those of the operator; an empty folder means the built-in ones.
func (c *checker) templates(key, folder string) *notify.Templates {
	texts := map[string]string{}
	for _, name := range []string{"subject.txt", "body.txt"} {
		if folder == "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(c.file(folder), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.bad(key, "%v", err)
		}
		texts[name] = string(text)
	}
	if folder != "" && texts["subject.txt"] == "" && texts["body.txt"] == "" {
		c.bad(key, "there is neither subject.txt nor body.txt in %s", c.file(folder))
	}
	made, err := notify.NewTemplates(texts["subject.txt"], texts["body.txt"])
	if err != nil {
		c.bad(key, "%v", err)
	}
	return made
}

// Channels returns the names of the channels by which groups can be notified, nil
// without a notify section.
func (s *Config) Channels() []string {
	if s.Notifiers == nil {
		return nil
	}
	names := slices.AppendSeq([]string{}, maps.Keys(s.Notifiers))
	return slices.DeleteFunc(names, func(name string) bool { return name == broker.PeopleChannel })
}
