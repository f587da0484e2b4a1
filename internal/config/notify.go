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

// notify creates the channels. It makes no calls.
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
				c.report(key, "%v", err)
			}
			cfg.Secrets = append(cfg.Secrets, secret)
		}
		made, err := notify.NewWebhook(cfg)
		c.channel(at, "webhook:"+name, made, err)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Mail)) {
		at, m := "notify/mail/"+name, f.Mail[name]
		made, err := notify.NewMail(notify.MailConfig{
			Pages: pages, Host: m.Host, Port: m.Port, From: string(m.From), To: neverNil(m.To), Username: m.Username,
			Password: c.secret(at+"/password_file", m.PasswordFile), TLS: cmp.Or(m.TLS, "starttls"), Roots: c.roots(at+"/ca_file", m.CAFile),
			AllowPrivate: m.AllowPrivate, Templates: texts,
		})
		c.channel(at, "mail:"+name, made, err)
	}
	if people := string(f.People); people != "" {
		if _, found := f.Mail[strings.TrimPrefix(people, "mail:")]; !found || !strings.HasPrefix(people, "mail:") {
			c.report("notify/people", "%q is not a mail channel: write one of them, as in mail:NAME", people)
			return
		}
		c.cfg.Notifiers[broker.PeopleChannel] = c.cfg.Notifiers[people]
	}
}

func (c *checker) channel(key, name string, made notify.Notifier, err error) {
	_, short, _ := strings.Cut(name, ":")
	c.name(key, short)
	if err != nil {
		c.report(key, "%v", err)
	}
	c.cfg.Notifiers[name] = made
}

// templates reads the operator's templates. An empty folder means the built-in ones.
func (c *checker) templates(key, folder string) *notify.Templates {
	texts := map[string]string{}
	for _, name := range []string{"subject.txt", "body.txt"} {
		if folder == "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(c.path(folder), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.report(key, "%v", err)
		}
		texts[name] = string(text)
	}
	if folder != "" && texts["subject.txt"] == "" && texts["body.txt"] == "" {
		c.report(key, "%s has neither subject.txt nor body.txt: add one", c.path(folder))
	}
	made, err := notify.NewTemplates(texts["subject.txt"], texts["body.txt"])
	if err != nil {
		c.report(key, "%v", err)
	}
	return made
}
