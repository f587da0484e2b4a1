"use strict";
// What passkeys need of the browser: a form that is to be signed asks the
// broker what to sign, has the passkey sign it, and is sent with the signature.
(() => {
  const toBytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const toText = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

  // say tells, above the form, what went wrong.
  function say(form, text) {
    let p = form.querySelector("[role=alert]");
    if (!p) {
      p = document.createElement("p");
      p.className = "failed";
      p.setAttribute("role", "alert");
      form.prepend(p);
    }
    p.textContent = text;
  }

  // words of what browsers call it.
  function words(error) {
    if (error.name === "NotAllowedError") return "Your passkey did not sign: it was cancelled, or took too long. Nothing was sent.";
    if (error.name === "InvalidStateError") return "This passkey is enrolled already.";
    if (error.name === "SecurityError") return "Your browser does not let passkeys be used on this page.";
    return error.message || "That did not work. Nothing was sent.";
  }

  async function ask(url, form, button) {
    const answer = await fetch(url, { method: "POST", body: new URLSearchParams(new FormData(form, button)), credentials: "same-origin", redirect: "error" });
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error([body.detail || body.title || "The broker did not answer as it should.", ...(body.reasons || [])].join(" "));
    return body;
  }

  function put(form, name, value) {
    let input = form.querySelector(`input[name="${name}"]`);
    if (!input) {
      input = document.createElement("input");
      input.type = "hidden";
      input.name = name;
      form.append(input);
    }
    input.value = value;
  }

  async function sign(form, button) {
    const where = form.dataset.options || location.pathname + "/sign";
    const { publicKey, ticket } = await ask(where, form, button);
    publicKey.challenge = toBytes(publicKey.challenge);
    for (const c of publicKey.allowCredentials) c.id = toBytes(c.id);
    const made = await navigator.credentials.get({ publicKey });
    put(form, "ticket", ticket);
    put(form, "assertion", JSON.stringify({
      id: toText(made.rawId), authenticator_data: toText(made.response.authenticatorData),
      client_data: toText(made.response.clientDataJSON), signature: toText(made.response.signature),
    }));
  }

  async function enrol(form, button) {
    const { options, ticket } = await ask(form.dataset.enrol, form, button);
    const publicKey = options.publicKey;
    publicKey.challenge = toBytes(publicKey.challenge);
    publicKey.user.id = toBytes(publicKey.user.id);
    for (const c of publicKey.excludeCredentials || []) c.id = toBytes(c.id);
    const made = await navigator.credentials.create({ publicKey });
    put(form, "ticket", ticket);
    put(form, "response", JSON.stringify({
      id: made.id, rawId: toText(made.rawId), type: made.type, clientExtensionResults: {},
      response: { clientDataJSON: toText(made.response.clientDataJSON), attestationObject: toText(made.response.attestationObject) },
    }));
  }

  for (const form of document.querySelectorAll("form[data-sign], form[data-enrol]")) {
    let ready = false;
    form.addEventListener("submit", (event) => {
      const button = event.submitter;
      const job = form.dataset.enrol ? enrol : sign;
      if (ready || (form.dataset.sign !== undefined && (!button || !form.dataset.sign.split(" ").includes(button.value)))) return;
      event.preventDefault();
      if (!window.PublicKeyCredential) return say(form, "Your browser knows no passkeys.");
      for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = true;
      button.disabled = false;
      job(form, button).then(() => {
        for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = false;
        ready = true;
        form.requestSubmit(button);
      }, (error) => {
        for (const b of form.querySelectorAll("button:not([hidden])")) b.disabled = false;
        say(form, words(error));
      });
    });
  }
})();
