// What this console uses of noVNC. Source: its docs/API.md.
declare module "@novnc/novnc" {
  export default class RFB extends EventTarget {
    constructor(target: Element, url: string, options?: { shared?: boolean });
    scaleViewport: boolean;
    sendCtrlAltDel(): void;
    disconnect(): void;
  }
}
