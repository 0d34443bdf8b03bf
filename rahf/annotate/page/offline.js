"use strict";
// Keeps the page and the pictures at work, so that a reload without a network goes on. The network is asked first.
const NAME = "rahf-1";
const FILES = ["/", "/annotate.js", "/style.css", "/icon.svg"];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const kept = FILES.includes(url.pathname) || url.pathname.startsWith("/pictures/");
  if (event.request.method !== "GET" || url.origin !== self.location.origin || !kept) return;
  event.respondWith(answer(event.request, url.pathname));
});

async function answer(request, path) {
  const cache = await caches.open(NAME);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(path, response.clone());
    return response;
  } catch (error) {
    const stored = await cache.match(path);
    if (stored) return stored;
    throw error;
  }
}
